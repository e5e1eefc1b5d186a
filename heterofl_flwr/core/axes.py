"""Axes: the entries of one axis of a parameter that a client keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from heterofl_flwr.common.errors import ShapeError
from heterofl_flwr.core.moving_slices import SliceFunction, prefix


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of ``size`` entries; a client holds ``local_size`` of them.

    The axis is made of ``parts`` equal parts, each of which keeps ``local_size / parts`` entries: the heads of an
    attention layer, the gates of an LSTM. Most axes are one part. ``index`` names the positions that every part
    keeps, ascending; without it they are the first.
    """

    size: int
    local_size: int
    parts: int = 1
    index: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check that lengths and positions fit one another."""
        if not 0 <= self.local_size <= self.size:
            raise ShapeError(f"an axis of {self.size} entries cannot keep {self.local_size}")
        if self.parts < 1 or self.size % self.parts or self.local_size % self.parts:
            raise ShapeError(
                f"an axis that keeps {self.local_size} of {self.size} entries does not divide into {self.parts} parts"
            )
        index, (part_length, part_kept) = self.index, self.part
        if index is None:
            return
        if len(index) != part_kept or not all(start < end for start, end in pairwise((-1, *index, part_length))):
            shown = ", ".join(map(str, index[:8])) + (", ..." if len(index) > 8 else "")
            raise ShapeError(
                f"expected {part_kept} ascending positions below {part_length} of each part, got {len(index)}: {shown}"
            )

    @property
    def part(self) -> tuple[int, int]:
        """The full and the kept length of one part."""
        return self.size // self.parts, self.local_size // self.parts

    def contains(self, axis: "Axis") -> bool:
        """Whether every entry that another axis holds is held here."""
        return self.size == axis.size and positions(axis) <= positions(self)

    def sliced(self, function: SliceFunction) -> "Axis":
        """Return this axis with the positions that ``function`` keeps of each part."""
        # What is held whole, or a prefix, has one form only, so that plans that mean the same are equal.
        if self.local_size == self.size:
            return Axis(self.size, self.size)
        index = self._find_index(function)
        return replace(self, index=None if index == tuple(range(self.part[1])) else index)

    def _find_index(self, function: SliceFunction) -> tuple[int, ...] | None:
        index = function(*self.part)
        return None if index is None else tuple(map(int, index))


Axes = tuple[Axis, ...]
"""The axes of one parameter."""


def axes_between(shape: Sequence[int], local_shape: Sequence[int], parts: Mapping[int, int] | None = None) -> Axes:
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
    parts_of = parts or {}
    if len(shape) != len(local_shape) or any(not 0 <= number < len(shape) for number in parts_of):
        raise ShapeError(
            f"shapes {tuple(shape)} and {tuple(local_shape)} with parts of axes {list(parts_of)} do not match"
        )
    return tuple(
        # An axis held whole has no use for parts; without them, plans that mean the same are equal.
        Axis(large, small, parts_of.get(number, 1) if small != large else 1)
        for number, (large, small) in enumerate(zip(shape, local_shape, strict=True))
    )


@dataclass(frozen=True, slots=True)
class PrefixAxis(Axis):
    """An axis of a layer whose last groups or heads are dropped whole: other entries would be of several of them."""


@dataclass(frozen=True, slots=True)
class CoupledAxis(Axis):
    """An axis that keeps channels of some groups. Entries of group -1 are always kept."""

    groups: tuple[tuple[int, int], ...] = ()  # of each: the number of channels, and how many are kept
    places: tuple[tuple[int, int], ...] = ()  # of each entry: its group, and its channel's number in the group

    def __hash__(self) -> int:
        """Leave out what is long; axes that differ only in it are rare."""
        return hash((self.size, self.local_size, self.groups))

    def _find_index(self, function: SliceFunction) -> tuple[int, ...]:
        channels_kept = []
        for channels, width in self.groups:
            index = None if width == channels else function(channels, width)
            channels_kept.append(set(range(width) if index is None else map(int, index)))
        return tuple(
            place for place, (group, channel) in enumerate(self.places) if group < 0 or channel in channels_kept[group]
        )


def build_channel_axis(places: Sequence[tuple[int, int]], groups: Sequence[tuple[int, int]]) -> Axis:
    """Return the axis that keeps the first channels of each group: a plain ``Axis`` where one can express it."""
    length = len(places)
    used = sorted({group for group, _ in places if group >= 0})
    local_size = sum(group < 0 or channel < groups[group][1] for group, channel in places)
    if len(used) == 1 and local_size < length:
        channels = groups[used[0]][0]
        if list(places) == [(used[0], channel) for channel in range(channels)] * (length // channels):
            return Axis(length, local_size, length // channels)
    numbers = {group: number for number, group in enumerate(used)} | {-1: -1}
    renumbered = tuple((numbers[group], channel) for group, channel in places)
    return CoupledAxis(length, local_size, 1, None, tuple(groups[group] for group in used), renumbered).sliced(prefix)


def positions(axis: Axis) -> set[int]:
    """Return the positions that an axis keeps."""
    length, part_kept = axis.part
    within = range(part_kept) if axis.index is None else axis.index
    return {part * length + place for part in range(axis.parts) for place in within}
