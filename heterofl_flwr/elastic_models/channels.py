"""The outcome of a trace: which positions of every axis are one channel, and which channels one width counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heterofl_flwr.elastic_models.lengths import Positions, Row

Places = NDArray[np.int64]
"""For each position of an axis its group and its number in the group, (length, 2); group -1 is always kept."""


@dataclass(frozen=True, eq=False)
class Channels:
    """How a model is cut.

    A channel is a set of positions, of any axes of any parameters, that are kept or dropped together. A group is a
    sequence of channels that one width counts: the first of them are kept.

    Attributes
    ----------
    sizes : Sequence[int]
        The number of channels of each group.
    axes : Mapping[str, Sequence[Places | None]]
        For each parameter and buffer its axes; None for one that is kept whole.
    """

    sizes: Sequence[int]
    axes: Mapping[str, Sequence[Places | None]]

    def __deepcopy__(self, memo: object) -> "Channels":
        """Return this: it never changes."""
        return self

    def equal(self, other: "Channels") -> bool:
        """Whether both cut in the same way; the other may have come from another process."""
        if self is other:
            return True
        return self.sizes == other.sizes and all(
            len(own) == len(other.axes.get(name, ())) and all(map(_same, own, other.axes[name]))
            for name, own in self.axes.items()
        )


class Grouping:
    """Sorts the positions of a trace into channels and groups.

    Channels that occur in the same axes of parameters are one group: those of a residual stream, those of one part of
    a concatenation. Their order is that of the first axis they occur in.
    """

    def __init__(self, positions: Positions, axes: Sequence[Row]) -> None:
        self._positions = positions
        self._group = np.full(len(positions), -1)  # of each channel, by its root
        self._number = np.zeros(len(positions), np.int64)
        self._places: dict[bytes, Places] = {}
        self.sizes: list[int] = []
        # The sum of a random number for each axis a channel occurs in tells sets of axes apart.
        draws = np.random.default_rng(0).integers(1 << 62, size=len(axes))
        signs = np.zeros(len(positions), np.int64)
        for row, draw in zip(axes, draws, strict=True):
            signs[np.unique(positions.roots(row))] ^= draw
        signs[0] = 0
        channels = np.flatnonzero(signs)
        _, first, group = np.unique(signs[channels], return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))  # groups in the order of their first channels
        for number in range(len(first)):
            members = channels[order[group] == number]
            self._group[members] = number
            self._number[members] = np.arange(len(members))
            self.sizes.append(len(members))

    def places(self, row: Row | None) -> Places | None:
        """Return the groups of an axis' positions, or None if it is kept whole; of equal axes the same object."""
        if row is None:
            return None
        roots = self._positions.roots(row)
        groups = self._group[roots]
        if not (groups >= 0).any():
            return None
        return self._places.setdefault(roots.tobytes(), np.stack([groups, self._number[roots]], 1))

    def length(self, row: Row) -> Places | int | None:
        """Return what the length of an axis depends on, or None if it is of nothing of the model's parameters."""
        roots = self._positions.roots(row)
        places = self.places(row)
        if places is None:
            return None if roots.any() else len(row)
        return None if ((places[:, 0] < 0) & (roots > 0)).any() else places


def _same(one: Places | None, two: Places | None) -> bool:
    return one is two if one is None or two is None else np.array_equal(one, two)


def kept_positions(places: Places, kept: Sequence[int]) -> Row:
    """Return the positions of an axis that are kept, ascending."""
    # Group -1, which is always kept, is the last entry here.
    return np.flatnonzero(places[:, 1] < np.array([*kept, 1])[places[:, 0]])
