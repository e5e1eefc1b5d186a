"""Channels, the positions of all axes that are cut together, and groups of channels that one width counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.int64]
"""The positions of one axis."""

Rows = Sequence[Row | None]
"""For each axis of a tensor its positions, or None for an axis that is kept whole."""

Places = NDArray[np.int64]
"""For each position of an axis its group and its number in the group, (length, 2); group -1 is always kept."""


class Positions:
    """Sets of positions that grow together: a union-find over arrays.

    Every position is a number; a row of them stands for an axis. Position 0 is kept at every rate, so whatever is
    united with it is kept too. An operator on an axis of thousands of channels is one call.
    """

    def __init__(self) -> None:
        self._parents: Row = np.zeros(1024, np.int64)
        self.number = 1  # how many positions there are

    def new(self, number: int) -> Row:
        """Return a row of new positions."""
        start, self.number = self.number, self.number + number
        if self.number > len(self._parents):
            self._parents = np.pad(self._parents[:start], (0, 2 * self.number - start))
        row = np.arange(start, self.number)
        self._parents[row] = row
        return row

    def roots(self, row: Row) -> Row:
        """Return for each position the smallest one of its set."""
        roots = self._parents[row]
        while not np.array_equal(above := self._parents[roots], roots):
            roots = above
        self._parents[row] = roots  # the next search is short
        return roots

    def unite(self, row: Row, partners: Row) -> None:
        """Make one set of each position of a row and its partner in the other; shapes broadcast."""
        while True:
            roots, partner_roots = np.broadcast_arrays(self.roots(row), self.roots(partners))
            differ = roots != partner_roots
            if not differ.any():
                return
            low, high = np.minimum(roots, partner_roots)[differ], np.maximum(roots, partner_roots)[differ]
            # A root with several partners takes the smallest; the next turn unites it with the others.
            np.minimum.at(self._parents, high, low)


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels and groups of a model.

    A channel is a set of positions, of any axes of any parameters, that are kept or dropped together. A group is a
    sequence of channels that one width counts: the first of them are kept.
    """

    sizes: Sequence[int]  # the number of channels of each group
    axes: Mapping[str, Sequence[Places | None]]  # of each parameter and buffer; None for an axis that is kept whole

    def equal(self, channels: "Channels") -> bool:
        """Whether both cut in the same way; the other may have come from another process."""
        if self is channels:
            return True
        return self.sizes == channels.sizes and all(
            len(places) == len(channels.axes.get(name, ())) and all(map(_same, places, channels.axes[name]))
            for name, places in self.axes.items()
        )


def _same(places: Places | None, others_places: Places | None) -> bool:
    return places is others_places if places is None or others_places is None else np.array_equal(places, others_places)


class Grouping:
    """Sorts the positions of a trace into channels and groups.

    Channels that occur in the same axes of parameters are one group, as in a residual stream or one part of a
    concatenation. Their order is that of the first axis they occur in.
    """

    def __init__(self, positions: Positions, axes: Sequence[Row]) -> None:
        self._positions = positions
        self._table = np.tile(np.array([-1, 0]), (positions.number, 1))  # by its root a channel's group and number
        self._places: dict[bytes, Places] = {}
        self.sizes: list[int] = []
        # The sum of a random number for each axis a channel occurs in tells sets of axes apart.
        draws = np.random.default_rng(0).integers(1 << 62, size=len(axes))
        signs = np.zeros(positions.number, np.int64)
        for row, draw in zip(axes, draws, strict=True):
            signs[np.unique(positions.roots(row))] ^= draw
        signs[0] = 0
        channels = np.flatnonzero(signs)
        sets, group = np.unique(signs[channels], return_inverse=True)
        for number in range(len(sets)):
            members = channels[group == number]
            self._table[members] = np.stack([np.full(len(members), number), np.arange(len(members))], 1)
            self.sizes.append(len(members))

    def places(self, row: Row | None) -> Places | None:
        """Return the groups of an axis' positions, or None if it is kept whole; of equal axes the same object."""
        if row is None:
            return None
        roots = self._positions.roots(row)
        places = self._table[roots]
        return self._places.setdefault(roots.tobytes(), places) if (places[:, 0] >= 0).any() else None

    def length(self, row: Row) -> Places | int | None:
        """Return what the length of an axis depends on, or None if it is of nothing of the model's parameters."""
        roots = self._positions.roots(row)
        places = self.places(row)
        if places is None:
            return None if roots.any() else len(row)
        return None if ((places[:, 0] < 0) & (roots > 0)).any() else places


def kept_positions(places: Places, widths: Sequence[int]) -> Row:
    """Return the positions of an axis that are kept, ascending."""
    # Group -1, which is always kept, is the last entry here.
    return np.flatnonzero(places[:, 1] < np.array([*widths, 1])[places[:, 0]])
