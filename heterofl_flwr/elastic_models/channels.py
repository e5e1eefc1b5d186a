"""Channels: entries of axes that are kept or dropped together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.int64]
"""Positions of an axis: one number for each entry of the axis.

Entries are kept or dropped together if their positions are equal or united by ``Positions.unite``.
"""

Rows = Sequence[Row | None]
"""Positions of each axis of a tensor; None for an axis that is kept in full."""

Places = NDArray[np.int64]
"""Group and channel number of each entry of an axis, of shape (length, 2). Entries of group -1 are always kept."""


class Positions:
    """Union-find structure on positions: a position is a number that identifies one index along one axis of a tensor.

    Position 0, and every position that is united with it, is in every slice of the model.
    """

    def __init__(self) -> None:
        self._parents: Row = np.zeros(1024, np.int64)
        self.number = 1  # number of positions

    def new(self, number: int) -> Row:
        """Return ``number`` new positions, not united with others."""
        start, self.number = self.number, self.number + number
        if self.number > len(self._parents):
            self._parents = np.pad(self._parents[:start], (0, 2 * self.number - start))
        row = np.arange(start, self.number)
        self._parents[row] = row
        return row

    def roots(self, row: Row) -> Row:
        """Return, for each position, the smallest position that is united with it."""
        roots = self._parents[row]
        while not np.array_equal(above := self._parents[roots], roots):
            roots = above
        self._parents[row] = roots  # path compression
        return roots

    def unite(self, row: Row, partners: Row) -> None:
        """Unite positions pairwise; shapes are broadcast."""
        while True:
            roots, partner_roots = np.broadcast_arrays(self.roots(row), self.roots(partners))
            differ = roots != partner_roots
            if not differ.any():
                return
            low, high = np.minimum(roots, partner_roots)[differ], np.maximum(roots, partner_roots)[differ]
            # A root with several partners takes the smallest one; the next iteration unites it with the others.
            np.minimum.at(self._parents, high, low)


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels and groups of a model.

    A channel is a set of entries that are kept or dropped together. A slice keeps the first channels of each group.
    """

    sizes: Sequence[int]  # number of channels of each group
    axes: Mapping[str, Sequence[Places | None]]  # by parameter or buffer; None for an axis that is kept in full


class Grouping:
    """Assignment of the positions of a trace to channels, and of the channels to groups.

    Channels that occur on exactly the same axes form a group, such as the channels of a residual stream. ``parts`` are
    axes that only divide groups, such as a piece of a split: they need not be those of a parameter.
    """

    def __init__(self, positions: Positions, axes: Sequence[Row], parts: Sequence[Row] = ()) -> None:
        self._positions = positions
        self._table = np.tile(np.array([-1, 0]), (positions.number, 1))  # by root: group, channel
        self._places: dict[bytes, Places] = {}
        self.sizes: list[int] = []
        # Each axis has a random number. The XOR over all axes of a channel identifies the set of these axes.
        draws = iter(np.random.default_rng(0).integers(1 << 62, size=len(axes) + len(parts)))
        signs = np.zeros(positions.number, np.int64)
        for row in axes:
            signs[np.unique(positions.roots(row))] ^= next(draws)
        signs[0] = 0
        sliced = signs != 0
        for row in parts:
            roots = np.unique(positions.roots(row))
            signs[roots[sliced[roots]]] ^= next(draws)
        channels = np.flatnonzero(signs)
        sets, group = np.unique(signs[channels], return_inverse=True)
        for number in range(len(sets)):
            members = channels[group == number]
            self._table[members, 0] = number
            self._table[members, 1] = np.arange(len(members))
            self.sizes.append(len(members))

    def places(self, row: Row | None) -> Places | None:
        """Return the group and channel of each entry of an axis; None if no entry belongs to a channel."""
        if row is None:
            return None
        roots = self._positions.roots(row)
        places = self._table[roots]
        return self._places.setdefault(roots.tobytes(), places) if (places[:, 0] >= 0).any() else None

    def length(self, row: Row) -> Places | int | None:
        """Return the length of an axis in a slice.

        The result is a number if all slices have the same length, and the axis's ``Places`` if the length depends on
        the widths. It is None if the length is unknown, because some entries can be sliced but belong to no channel.
        """
        roots = self._positions.roots(row)
        places = self.places(row)
        if places is None:
            return None if roots.any() else len(row)
        return None if ((places[:, 0] < 0) & (roots > 0)).any() else places


def kept_positions(places: Places, widths: Sequence[int]) -> Row:
    """Return the kept indices of an axis in a slice, in ascending order.

    ``widths`` has the number of channels that the slice keeps of each group.
    """
    # The last entry, 1, is the width of group -1, whose entries all have number 0: they are always kept.
    return np.flatnonzero(places[:, 1] < np.array([*widths, 1])[places[:, 0]])
