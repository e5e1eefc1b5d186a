"""What is known of a model while it is traced: for every tensor and axis, which positions it is made of."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from heterofl_flwr.elastic_models.lengths import Dependent, Length, Positions, Row, Source

Rows = tuple[Row | None, ...]
"""For each axis of a tensor its positions, or None for an axis that is kept whole."""


class Trace:
    """The positions of all tensors that a model has made, and what its code says about them."""

    def __init__(self) -> None:
        self.positions = Positions()
        self.listening = False  # whether it is the model's own code that runs, and not torch's
        self.flexible: Sequence[bool] = ()  # which axes of the view that comes next may shrink, as its code says
        self._rows: dict[int, tuple[Tensor, Rows]] = {}  # the tensors too: a number of one that is gone is given again

    def rows(self, tensor: Tensor) -> Rows:
        """Return the positions of a tensor's axes; a tensor that nobody knows is kept whole."""
        _, rows = self._rows.get(id(tensor), (tensor, (None,) * tensor.dim()))
        return tuple(map(self.open, rows))

    def known(self, tensor: Tensor) -> Rows | None:
        """Return what was said of a tensor, if anything was."""
        return self._rows[id(tensor)][1] if id(tensor) in self._rows else None

    def mark(self, tensor: Tensor, rows: Sequence[Row | None]) -> None:
        """Say of which positions a tensor is made."""
        self._rows[id(tensor)] = tensor, tuple(rows)

    def fresh(self, tensor: Tensor) -> None:
        """Give a tensor positions of its own. An axis of one entry is never cut, so it needs none."""
        self.mark(tensor, [self.positions.new(length) if length > 1 else None for length in tensor.shape])

    def open(self, row: Row | None) -> Row | None:
        """Return the row, or None if all of it is kept."""
        return row if row is not None and self.positions.roots(row).any() else None

    def pin(self, *rows: Row | None) -> None:
        """Keep these positions at every rate."""
        for row in rows:
            if row is not None:
                self.positions.unite(row, np.zeros(1, np.int64))

    def meet(self, *rows: Row | None) -> Row | None:
        """Let axes of equal length be cut alike; with one that is whole, all are."""
        first = rows[0]
        if first is None or any(row is None for row in rows):
            self.pin(*rows)
            return None
        for row in rows[1:]:
            if row is not None:
                self.positions.unite(first, row)
        return first

    def tie(self, one: Row | None, two: Row | None) -> None:
        """Let two axes keep numbers of entries that are in one proportion at every rate."""
        if one is None or two is None:
            self.pin(one, two)
        elif not self._proportional(one, two):
            part = math.gcd(len(one), len(two))
            for row in (one, two):
                self.positions.unite(row.reshape(-1, part), one[:part])

    def use(self, length: object, row: Row | None) -> None:
        """Take note that code wants an axis of this length; a plain number keeps it whole."""
        if not isinstance(length, Length):
            self.pin(row)
            return
        self.tie(row, self._variable(length))

    def compare(self, one: Dependent, two: float) -> None:
        """Let two numbers that code compares stay equal, or unequal in the same way, at every rate.

        Lengths keep their proportion. What is compared with a number that stands in the code is kept whole, unless that
        is below 1: no length ever is.
        """
        if not self.listening:
            return
        if isinstance(two, Dependent) and two.sources[0].listener is not self:
            two = int(two)  # the model's code has kept it from an earlier trace
        if isinstance(one, Length) and isinstance(two, Length):
            self.tie(self._variable(one), self._variable(two))
        elif isinstance(two, Dependent) or two >= 1 or not self._at_least_one(one):
            numbers = [number for number in (one, two) if isinstance(number, Dependent)]
            self.pin(*(source.row for number in numbers for source in number.sources + number.divisors))

    def lengths(self, tensor: Tensor) -> tuple[int, ...]:
        """Return a tensor's shape, in which the axes that may shrink remember what they are."""
        return tuple(
            length if row is None else Length.of(length, (Source(self, lambda row=row: row),))  # type: ignore[misc]
            for length, row in zip(tensor.shape, self.rows(tensor), strict=True)
        )

    def _variable(self, length: Length) -> Row | None:
        """Return the one axis by which a length shrinks, if any; keep all else whole that it was computed from."""
        for source in length.divisors:
            self.pin(source.row)
        variable = next((s for s in reversed(length.sources) if self.open(s.row) is not None), None)
        for source in length.sources:
            if source is not variable:
                self.pin(source.row)
        return None if variable is None else variable.row

    def _at_least_one(self, number: Dependent) -> bool:
        """Whether a number is a multiple of lengths, so that it is never 0."""
        multiple = math.prod(len(source.row) for source in number.sources)
        return isinstance(number, Length) and not number.divisors and int(number) % multiple == 0

    def _proportional(self, one: Row, two: Row) -> bool:
        first, counts = np.unique(self.positions.roots(one), return_counts=True)
        second, others = np.unique(self.positions.roots(two), return_counts=True)
        return np.array_equal(first, second) and np.array_equal(counts * len(two), others * len(one))
