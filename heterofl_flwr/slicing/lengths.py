"""Whole numbers that remember which axis they are the length of.

A model's code reads lengths (``x.shape``, ``self.hidden_dim``), computes with them, and hands them to ``view`` or
``split``. A ``Length`` goes through that code as the number that it is, and arrives with where it came from.
"""

from collections.abc import Callable

from heterofl_flwr.slicing.positions import Row


class Source:
    """An axis, or a number that a layer holds, whose length was read."""

    def __init__(self, make: Callable[[], Row]) -> None:
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


class Length(int):
    """A length: the product of some sources' lengths, times or through constants and other sources' lengths."""

    sources: tuple[Source, ...]
    divisors: tuple[Source, ...]

    @classmethod
    def of(cls, value: int, sources: tuple[Source, ...], divisors: tuple[Source, ...] = ()) -> "Length":
        """Return a number with its origin."""
        length = cls(value)
        length.sources, length.divisors = sources, divisors
        return length

    def __mul__(self, other: object) -> int:
        """Return a multiple, which is still a length; of anything but whole numbers it is only a number."""
        product = int.__mul__(self, other)  # type: ignore[operator]  # what int refuses is returned as such
        if product is NotImplemented or not isinstance(other, int):
            return product
        if isinstance(other, Length):
            return Length.of(product, self.sources + other.sources, self.divisors + other.divisors)
        return Length.of(product, self.sources, self.divisors)

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> int:
        """Return a part; an exact one is still a length."""
        quotient = int.__floordiv__(self, other)  # type: ignore[operator]
        if quotient is NotImplemented or not isinstance(other, int) or self % other:
            return quotient
        if isinstance(other, Length):
            return Length.of(quotient, self.sources + other.divisors, self.divisors + other.sources)
        return Length.of(quotient, self.sources, self.divisors)

    def __deepcopy__(self, memo: object) -> "Length":
        """Return this: a number never changes."""
        return self
