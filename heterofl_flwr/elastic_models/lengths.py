"""Which positions, of all axes of all tensors of a model, are kept or dropped together.

Every position is a number; a row of them stands for an axis. Position 0 is kept at every rate, so whatever is united
with it is kept too. This is a union-find over arrays: an operator on an axis of thousands of channels is one call.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

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


class Listener(Protocol):
    """What is told of the comparisons of a model's code: the trace."""

    def compare(self, one: "Dependent", two: float) -> None:
        """Let the comparison of two numbers have the same outcome at every rate."""


class Source:
    """An axis, or a number that a layer holds, whose length was read."""

    def __init__(self, listener: Listener, make: Callable[[], Row]) -> None:
        self.listener = listener
        self._make = make
        self._row: Row | None = None

    @property
    def used(self) -> bool:
        """Whether its length was ever used as one."""
        return self._row is not None

    @property
    def row(self) -> Row:
        """Its positions; those of a layer's number are made when they are first needed."""
        if self._row is None:
            self._row = self._make()
        return self._row


def _computed(name: str) -> Callable[..., Any]:
    """Return a method of whole numbers whose result remembers the sources of its operands."""
    plain = getattr(int, name)

    def compute(self: "Dependent", *others: object) -> object:
        result = plain(self, *others)
        if type(result) is not int:
            return result
        operands = [one for one in (self, *others) if isinstance(one, Dependent)]
        return Dependent.of(result, tuple(source for one in operands for source in one.sources + one.divisors))

    return compute


def _compared(name: str) -> Callable[..., Any]:
    """Return a comparison of whole numbers that is told to the trace."""
    plain = getattr(int, name)

    def compare(self: "Dependent", other: object) -> Any:
        if isinstance(other, int | float):
            self.sources[0].listener.compare(self, other)
        return plain(self, other)

    return compare


class Dependent(int):
    """A number that was computed from lengths, though it is none itself: their sum, or a part that is not exact."""

    sources: tuple[Source, ...]
    divisors: tuple[Source, ...]

    @classmethod
    def of(cls, value: int, sources: tuple[Source, ...], divisors: tuple[Source, ...] = ()) -> "Dependent":
        """Return a number with its origin."""
        number = cls(value)
        number.sources, number.divisors = sources, divisors
        return number

    __add__ = __radd__ = _computed("__add__")
    __sub__, __rsub__, __neg__ = map(_computed, ("__sub__", "__rsub__", "__neg__"))
    __mul__ = __rmul__ = _computed("__mul__")
    __floordiv__, __rfloordiv__, __mod__, __rmod__ = map(
        _computed, ("__floordiv__", "__rfloordiv__", "__mod__", "__rmod__")
    )
    __eq__, __ne__, __lt__, __le__, __gt__, __ge__ = map(
        _compared, ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
    )
    __hash__ = int.__hash__

    def __bool__(self) -> bool:
        """Return whether the number is not 0."""
        return bool(self != 0)

    def __deepcopy__(self, memo: object) -> "Dependent":
        """Return this: a number never changes."""
        return self


class Length(Dependent):
    """A length: the product of some sources' lengths, times or through constants and other sources' lengths."""

    def __mul__(self, other: object) -> Any:
        """Return a multiple, which is still a length; of anything but whole numbers and lengths it is none."""
        if not _followed(other):
            return super().__mul__(other)
        sources, divisors = _origin(other)
        return Length.of(int(self) * int(other), self.sources + sources, self.divisors + divisors)

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> Any:
        """Return a part; an exact one is still a length."""
        if not _followed(other) or int(self) % int(other):
            return super().__floordiv__(other)
        sources, divisors = _origin(other)
        return Length.of(int(self) // int(other), self.sources + divisors, self.divisors + sources)


def _followed(other: object) -> TypeGuard[int]:
    """Whether a product with the other factor, or a part by it, can be a length."""
    return isinstance(other, Length) or (isinstance(other, int) and not isinstance(other, Dependent))


def _origin(number: int) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """Return what a number was made of: nothing, for one that stands in the code."""
    return (number.sources, number.divisors) if isinstance(number, Dependent) else ((), ())
