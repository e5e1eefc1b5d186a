"""The rows of a sweep: the blocks of an experiment, combined with the values of the command line."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import TYPE_CHECKING

from heterofl_flwr.common.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override


def combine_blocks(
    parser: "OverridesParser", blocks: Mapping[str, object], params: Mapping[str, object], arguments: Iterable[str]
) -> list[list[str]]:
    """Return the rows of a sweep: for each job its overrides, such as ``seed=0``.

    The rows of a block are all combinations of its values. A value in ``arguments`` that occurs in a block selects the
    rows with this value. Other values in ``arguments``, and the values in ``params``, replace the values of their key
    in all rows, or add the key. Equal rows are returned once.
    """
    choices = [_values(parser, block) for block in (list(_leaves(blocks)) or [{}])]
    in_blocks = {text for block in choices for texts in block.values() for text in texts}
    added, picked = _values(parser, params), []
    for key, texts in _choices(parser.parse_overrides(list(arguments))).items():
        values = set(texts)
        if not values & in_blocks:
            added[key] = texts
        elif values <= in_blocks:
            picked.append(values)
        else:
            inside, outside = min(values & in_blocks), min(values - in_blocks)
            raise ConfigError(f"{inside} is in the experiment and {outside} is not: give values of one kind")
    rows = (row for block in choices for row in product(*(block | added).values()))
    chosen = dict.fromkeys(row for row in rows if all(values & set(row) for values in picked))
    if not chosen:
        condition = " and ".join(text for values in picked for text in sorted(values))
        raise ConfigError(f"no row of the experiment has {condition}; dry=true lists the rows that there are")
    return list(map(list, chosen))


def _values(parser: "OverridesParser", values: Mapping[str, object]) -> dict[str, list[str]]:
    """Return the overrides for each key in a block, such as ``seed=0`` and ``seed=1``."""
    return _choices(parser.parse_overrides([f"{key}={value}" for key, value in values.items()]))


def _choices(overrides: Iterable["Override"]) -> dict[str, list[str]]:
    """Return the overrides for each key, one for each value of a sweep."""
    choices = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values: Iterable[object] = [override.get_value_element_as_str()]
        elif key == "experiment":
            raise ConfigError(f"{override.input_line}: expected a list, such as experiment=[table7,table8]")
        elif override.is_discrete_sweep():
            values = override.sweep_string_iterator()
        else:
            raise ConfigError(f"{override.input_line}: a search over an interval needs hparams_search=optuna")
        choices[key] = [f"{key}={value}" for value in values]
    return choices


def _leaves(blocks: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Yield a block for each mapping in a nested mapping: its entries that are not mappings. Skip empty blocks."""
    if values := {key: value for key, value in blocks.items() if not isinstance(value, Mapping)}:
        yield values
    for block in blocks.values():
        if isinstance(block, Mapping):
            yield from _leaves(block)
