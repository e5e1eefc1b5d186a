"""The rows of a sweep: blocks of values, what the command line makes of them, and all their combinations."""

from collections.abc import Mapping, Sequence
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from heterofl_flwr.errors import ConfigError

Axes = Mapping[str, Sequence[str]]
"""By key: the overrides that set it, such as ``mix=a`` and ``mix=a-e``."""

Row = tuple[str, ...]


def axes_of(texts: Sequence[str], parser: OverridesParser) -> dict[str, tuple[str, ...]]:
    """Return the axes that overrides such as ``seed=0,1,2`` span; of two with one key the later one counts."""
    return {override.get_key_element(): _values(override) for override in parser.parse_overrides(list(texts))}


def block_of(values: Mapping[str, object], parser: OverridesParser) -> dict[str, tuple[str, ...]]:
    """Return the axes of one block of an experiment."""
    return axes_of([f"{key}={value}" for key, value in values.items()], parser)


def rows_of(blocks: Sequence[Axes], given: Axes) -> list[Row]:
    """Return the rows of all blocks, one block after the other, each once.

    A value given on the command line that occurs in a block picks the rows that have it. A value that occurs nowhere
    takes the place of the blocks' own, or is added to every row.
    """
    picked = {key for key, values in given.items() if _picks(key, values, blocks)}
    spans = [_narrowed(block, given, picked) for block in blocks or [{}]]
    rows = dict.fromkeys(row for span in spans for row in product(*span.values()))
    if not rows:
        wanted = " and ".join(text for key in given if key in picked for text in given[key])
        raise ConfigError(f"no row of the experiment has {wanted}; dry=true lists the rows that there are")
    return list(rows)


def _narrowed(block: Axes, given: Axes, picked: set[str]) -> dict[str, tuple[str, ...]]:
    """Return a block with what was given; an axis without values, and so a block without rows, where nothing fits."""
    span = {key: tuple(values) for key, values in block.items()}
    for key, values in given.items():
        own = block.get(key, ())
        span[key] = tuple(value for value in values if value in own) if key in picked else tuple(values)
    return span


def _picks(key: str, values: Sequence[str], blocks: Sequence[Axes]) -> bool:
    known = {value for block in blocks for value in block.get(key, ())}
    inside = [value for value in values if value in known]
    if inside and len(inside) < len(values):
        other = next(value for value in values if value not in known)
        raise ConfigError(f"{inside[0]} is in the experiment and {other} is not: give values of one kind")
    return bool(inside)


def _values(override: Override) -> tuple[str, ...]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return (override.input_line or key if override.is_delete() else f"{key}={override.get_value_element_as_str()}",)
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: a sweep needs values one by one, such as {key}=0.1,0.2")
    return tuple(f"{key}={value}" for value in override.sweep_string_iterator())
