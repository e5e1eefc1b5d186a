"""One axis of one parameter: how long it is, and which of its entries a client holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from heterofl_flwr.core.slice_rule import SliceFunction
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

    def sliced(self, function: SliceFunction) -> "Axis":
        """Return this axis with the positions that ``function`` keeps of each part."""
        # What is held whole, or a prefix, has one form only, so that plans that mean the same are equal.
        if self.kept == self.full:
            return Axis(self.full, self.full)
        found = function(*self.part)
        index = None if found is None else tuple(map(int, found))
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


@dataclass(frozen=True, slots=True)
class CoupledAxis(Axis):
    """An axis that keeps channels of some groups.

    Attributes
    ----------
    groups : tuple[tuple[int, int], ...]
        Of each group the number of channels and how many are kept.
    places : tuple[tuple[int, int], ...]
        Of each entry its group and its channel's number in the group. Entries of group -1 are always kept.
    """

    groups: tuple[tuple[int, int], ...] = ()
    places: tuple[tuple[int, int], ...] = ()

    def __hash__(self) -> int:
        """Leave out what is long; axes that differ only in it are rare."""
        return hash((self.full, self.kept, self.groups))

    def contains(self, other: Axis) -> bool:
        """Whether every entry that ``other`` holds is held here."""
        return self.full == other.full and positions(other) <= positions(self)

    def sliced(self, function: SliceFunction) -> Axis:
        """Return this axis with the channels that ``function`` keeps of each group."""
        if self.kept == self.full:
            return Axis(self.full, self.full)
        held = [_held(function, channels, kept) for channels, kept in self.groups]
        index = tuple(
            place for place, (group, channel) in enumerate(self.places) if group < 0 or channel in held[group]
        )
        return replace(self, index=None if index == tuple(range(self.kept)) else index)


def axis_of_channels(places: Sequence[tuple[int, int]], groups: Sequence[tuple[int, int]]) -> Axis:
    """Return the axis that keeps the first channels of each group; a plain one where that says it all."""
    kept = sum(group < 0 or channel < groups[group][1] for group, channel in places)
    if kept == len(places):
        return Axis(kept, kept)
    used = sorted({group for group, _ in places if group >= 0})
    renumbered = {group: number for number, group in enumerate(used)} | {-1: -1}
    own = tuple(groups[group] for group in used)
    if len(used) == 1 and list(places) == [(used[0], channel) for channel in range(own[0][0])] * (
        len(places) // own[0][0]
    ):
        return Axis(len(places), kept, len(places) // own[0][0])
    index = tuple(place for place, (group, channel) in enumerate(places) if group < 0 or channel < groups[group][1])
    return CoupledAxis(
        len(places),
        kept,
        1,
        None if index == tuple(range(kept)) else index,
        own,
        tuple((renumbered[group], channel) for group, channel in places),
    )


def positions(axis: Axis) -> set[int]:
    """Return the positions that an axis keeps."""
    full, kept = axis.part
    held = range(kept) if axis.index is None else axis.index
    return {part * full + place for part in range(axis.parts) for place in held}


def _held(function: SliceFunction, channels: int, kept: int) -> set[int]:
    found = None if kept == channels else function(channels, kept)
    return set(range(kept)) if found is None else set(map(int, found))
