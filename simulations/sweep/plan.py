"""The rows of a sweep: blocks of values, what the command line makes of them, and all their combinations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings import flatten
from simulations.sweep.job import Job, job_of

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


class Composer:
    """Composes the configuration of each row, with dotted keys.

    Hydra takes a tenth of a second for one, and the paper has hundreds, so it composes each choice of groups once. Then
    a row's plain values are put in, which is all that Hydra does with them.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig, parser: OverridesParser) -> None:
        self._loader = loader
        self._master = master
        self._keys = flat(master).keys()
        self._read = lru_cache(maxsize=None)(parser.parse_override)
        self._base = lru_cache(maxsize=64)(self._compose)

    def __call__(self, row: Row) -> dict[str, object]:
        """Return the configuration of a row."""
        overrides = {text: self._read(text) for text in row}
        plain = {text: override for text, override in overrides.items() if self._is_plain(override)}
        others = tuple(text for text in row if text not in plain)
        return {**self._base(others), **{override.key_or_group: override.value() for override in plain.values()}}

    def _compose(self, row: Row) -> Mapping[str, object]:
        return flat(self._loader.load_sweep_config(self._master, list(row)))

    def _is_plain(self, override: Override) -> bool:
        value = override.value()
        refers = isinstance(value, str) and "${" in value
        known = override.key_or_group in self._keys and override.package is None
        return (
            known
            and override.type == OverrideType.CHANGE
            and isinstance(value, bool | int | float | str)
            and not refers
        )


def flat(config: DictConfig) -> dict[str, object]:
    """Return a composed configuration without Hydra's own part, with dotted keys."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    container = OmegaConf.to_container(own, resolve=True)
    return flatten({str(key): value for key, value in dict(container).items()})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Planned:
    """A job, and the overrides of which Hydra makes it."""

    job: Job
    row: Row


def plan(loader: ConfigLoader, master: DictConfig, arguments: Sequence[str]) -> dict[str, Planned]:
    """Return the different jobs by name; refuse all if one is faulty."""
    parser = OverridesParser.create(config_loader=loader)
    given = axes_of(arguments, parser)
    if len(texts := given.get("experiment", ())) > 1:  # Hydra would compose them job by job, too late for their rows
        names = ",".join(text.partition("=")[2] for text in texts)
        raise ConfigError(f"experiment={names} is no choice of rows; write experiment=[{names}]")
    blocks = []
    for key, block in master.hydra.sweeper.params.items():
        if not isinstance(block, Mapping):
            raise ConfigError(f"hydra.sweeper.params.{key}: found {block!r}, expected a block; write {key}=... itself")
        blocks.append(block_of(block, parser))
    compose = Composer(loader, master, parser)
    planned: dict[str, Planned] = {}
    faults: dict[str, None] = {}  # one fault may be that of all jobs
    for row in rows_of(blocks, given):
        try:
            job = job_of(compose(row))
            planned.setdefault(job.name, Planned(job, row))
        except ConfigError as error:
            faults[str(error)] = None
    if faults:
        raise ConfigError("\n".join(faults))
    return planned
