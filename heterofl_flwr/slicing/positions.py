"""Which positions, of all axes of all tensors of a model, are kept or dropped together.

Every position is a number; a row of them stands for an axis. Position 0 is kept at every rate, so whatever is united
with it is kept too. This is a union-find over arrays: an operator on an axis of thousands of channels is one call.
"""

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.int64]
"""The positions of one axis."""


class Positions:
    """Sets of positions that grow together."""

    def __init__(self) -> None:
        self._parents: Row = np.zeros(1024, np.int64)
        self._number = 1

    def __len__(self) -> int:
        """How many positions there are."""
        return self._number

    def new(self, number: int) -> Row:
        """Return a row of new positions."""
        first, self._number = self._number, self._number + number
        if self._number > len(self._parents):
            grown = np.zeros(2 * self._number, np.int64)
            grown[:first] = self._parents[:first]
            self._parents = grown
        row = np.arange(first, self._number)
        self._parents[row] = row
        return row

    def roots(self, row: Row) -> Row:
        """Return for each position the smallest one of its set."""
        found = self._parents[row]
        while True:
            above = self._parents[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parents[row] = found  # the next search is short
        return found

    def unite(self, one: Row, two: Row) -> None:
        """Make one set of each position of a row and its partner in the other; shapes broadcast."""
        while True:
            first, second = np.broadcast_arrays(self.roots(one), self.roots(two))
            differ = first != second
            if not differ.any():
                return
            low, high = np.minimum(first, second)[differ], np.maximum(first, second)[differ]
            # A root with several partners takes the smallest; the next turn unites it with the others.
            np.minimum.at(self._parents, high, low)
