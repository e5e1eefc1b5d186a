"""Whole numbers that remember which axis they are the length of.

A model's code reads lengths (``x.shape``, ``self.hidden_dim``), computes with them, compares them, and hands them to
``view`` or ``split``. A ``Length`` goes through that code as the number that it is, and arrives with where it came
from.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

from heterofl_flwr.slicing.positions import Row


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
