"""One axis of one parameter: how long it is, and which of its entries a client holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from heterofl_flwr.core.choose import Choose
from heterofl_flwr.errors import ShapeError


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of ``full`` entries of which ``kept`` are held.

    The axis is made of ``parts`` equal parts, each of which keeps its own ``kept / parts`` entries: the heads of an
    attention layer, the gates of an LSTM. Most axes are one part. ``index`` names the positions that every part
    keeps, ascending; without it they are the first.
    """

    full: int
    kept: int
    parts: int = 1
    index: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse lengths and positions that do not fit."""
        if not 0 <= self.kept <= self.full:
            raise ShapeError(f"an axis of {self.full} entries cannot keep {self.kept}")
        if self.parts < 1 or self.full % self.parts or self.kept % self.parts:
            raise ShapeError(
                f"an axis that keeps {self.kept} of {self.full} entries does not divide into {self.parts} parts"
            )
        if self.index is not None:
            _check_index(self.index, *self.part)

    @property
    def part(self) -> tuple[int, int]:
        """The full and the kept length of one part."""
        return self.full // self.parts, self.kept // self.parts

    def contains(self, other: "Axis") -> bool:
        """Whether every entry that ``other`` holds is held here."""
        if self.full != other.full:
            return False
        if self.kept == self.full or self == other:
            return True
        plain = self.index is None and other.index is None
        return plain and self.parts == other.parts and other.kept <= self.kept

    def chosen(self, choose: Choose) -> "Axis":
        """Return this axis with the positions that ``choose`` keeps of each part."""
        # What is held whole, or a prefix, has one form only, so that plans that mean the same are equal.
        if self.kept == self.full:
            return Axis(self.full, self.full)
        chosen = choose(*self.part)
        index = None if chosen is None else tuple(map(int, chosen))
        return replace(self, index=None if index == tuple(range(self.part[1])) else index)


Axes = tuple[Axis, ...]
"""The axes of one parameter."""


def axes_between(full: Sequence[int], local: Sequence[int], parts: Mapping[int, int] | None = None) -> Axes:
    """Return the axes of a parameter from its full and its local shape.

    Parameters
    ----------
    full, local : Sequence[int]
        The two shapes.
    parts : Mapping[int, int] | None
        Of how many equal parts some axes are made, by the axis' number.

    Raises
    ------
    ShapeError
        If the local shape is no slice of the full one.
    """
    given = parts or {}
    if len(full) != len(local) or any(not 0 <= number < len(full) for number in given):
        raise ShapeError(f"shapes {tuple(full)} and {tuple(local)} with parts of axes {list(given)} do not match")
    return tuple(
        # An axis held whole has no use for parts; without them, plans that mean the same are equal.
        Axis(large, small, given.get(number, 1) if small != large else 1)
        for number, (large, small) in enumerate(zip(full, local, strict=True))
    )


def _check_index(index: tuple[int, ...], full: int, kept: int) -> None:
    ascending = all(left < right for left, right in pairwise(index))
    if len(index) != kept or not ascending or (kept and not 0 <= index[0] <= index[-1] < full):
        shown = ", ".join(map(str, index[:8])) + (", ..." if len(index) > 8 else "")
        raise ShapeError(f"expected {kept} ascending positions below {full} of each part, got {len(index)}: {shown}")
