"""Hydra's basic sweeper for experiments whose rows are no single product of values."""

from collections.abc import Iterator, Mapping

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins

from heterofl_flwr.errors import ConfigError

Plugins.instance()  # its search for plug-ins loads Hydra's own anew, so a class of theirs is imported after it
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402

TARGET = "hydra_plugins.heterofl.BlockSweeper"
"""The sweeper's name in ``conf/``: Hydra instantiates only what is named as in ``hydra_plugins``."""


class BlockSweeper(BasicSweeper):
    """Sweeps over blocks of values one after the other: over all combinations within a block, each row once.

    A value of the command line that occurs in a block picks the rows that have it. Any other takes the place of the
    blocks' own, or is added to every row.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str], blocks: Mapping[str, object]) -> None:
        super().__init__(max_batch_size, params)
        parse = OverridesParser.create().parse_overrides
        self._blocks = [parse([f"{key}={value}" for key, value in own.items()]) for own in _leaves(blocks)]

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:  # type: ignore[override]
        """Return the rows, in batches."""
        known = {text for block in self._blocks for row in _product(block) for text in row}
        picked, others = [], []
        for override in overrides:
            values = {text for (text,) in _product([override])}
            if not values & known:
                others.append(override)
            elif values <= known:
                picked.append(values)
            else:
                inside, outside = min(values & known), min(values - known)
                raise ConfigError(f"{inside} is in the experiment and {outside} is not: give values of one kind")
        rows = (tuple(row) for block in self._blocks or [[]] for row in _product([*block, *others]))
        found = dict.fromkeys(row for row in rows if all(values & set(row) for values in picked))
        if not found:
            wanted = " and ".join(text for values in picked for text in sorted(values))
            raise ConfigError(f"no row of the experiment has {wanted}; dry=true lists the rows that there are")
        return list(self.split_overrides_to_chunks(list(map(list, found)), max_batch_size))


def _product(overrides: list[Override]) -> list[list[str]]:
    return BasicSweeper.split_arguments(overrides, None)[0]


def _leaves(blocks: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Yield the blocks; an experiment that is part of another has its own within one of that."""
    if values := {key: own for key, own in blocks.items() if not isinstance(own, Mapping)}:
        yield values
    for own in blocks.values():
        if isinstance(own, Mapping):
            yield from _leaves(own)
