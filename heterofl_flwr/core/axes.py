"""Axes of a parameter, and the entries that a client keeps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from heterofl_flwr.common.errors import ShapeError
from heterofl_flwr.core.slice_rules import SliceFunction, prefix


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a parameter: a client keeps ``local_size`` of its ``size`` entries.

    The axis consists of ``parts`` equal parts, such as attention heads or the gates of an LSTM. In each part, a client
    keeps the entries at the positions in ``index``. If ``index`` is None, it keeps the first entries.
    """

    size: int
    local_size: int
    parts: int = 1
    index: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
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
        """Number of entries in one part, as a pair: in the global model and in the client's model."""
        return self.size // self.parts, self.local_size // self.parts

    def contains(self, axis: "Axis") -> bool:
        """Return True if this axis keeps every entry that ``axis`` keeps."""
        return self.size == axis.size and positions(axis) <= positions(self)

    def sliced(self, function: SliceFunction) -> "Axis":
        """Return a copy that keeps, in each part, the entries that ``function`` selects."""
        # A full axis and a prefix each have one canonical form, so that plans with the same entries are equal.
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
    """Return the axes of a parameter from its shapes in the global model and in the client's model.

    Parameters
    ----------
    shape, local_shape : Sequence[int]
        The parameter's shape in the global model and in the client's.
    parts : Mapping[int, int] | None
        Number of equal parts, such as heads, by index of the axis. An axis that is missing here has one part.

    Raises
    ------
    ShapeError
        If the shapes differ in their number of axes, if an axis is longer in the client's model, or if ``parts`` does
        not fit the axes.
    """
    parts_of = parts or {}
    if len(shape) != len(local_shape) or any(not 0 <= number < len(shape) for number in parts_of):
        raise ShapeError(
            f"shapes {tuple(shape)} and {tuple(local_shape)} with parts of axes {list(parts_of)} do not match"
        )
    return tuple(
        # A full axis does not need its parts; without them, plans with the same entries are equal.
        Axis(large, small, parts_of.get(number, 1) if small != large else 1)
        for number, (large, small) in enumerate(zip(shape, local_shape, strict=True))
    )


@dataclass(frozen=True, slots=True)
class PrefixAxis(Axis):
    """An axis that can keep only its first entries, as in some grouped convolutions.

    ``Plan.check_groups`` raises ``ConfigError`` if a plan has such an axis.
    """


@dataclass(frozen=True, slots=True)
class CoupledAxis(Axis):
    """An axis whose entries belong to channels of one or more groups, for example after a concatenation.

    A group is a set of channels that is sliced in the same way on all axes. Entries of group -1 are always kept.
    """

    groups: tuple[tuple[int, int], ...] = ()  # for each group: number of channels, number of channels kept
    places: tuple[tuple[int, int], ...] = ()  # for each entry: its group, its channel in the group

    def __hash__(self) -> int:
        # ``index`` and ``places`` are left out: they are long, and few axes differ only in them.
        return hash((self.size, self.local_size, self.groups))

    @property
    def is_even(self) -> bool:
        """True if, in each group that is sliced, all channels have equally many entries on this axis."""
        numbers = Counter(self.places)
        return all(
            width == channels or len({numbers[group, channel] for channel in range(channels)}) == 1
            for group, (channels, width) in enumerate(self.groups)
        )

    def _find_index(self, function: SliceFunction) -> tuple[int, ...]:
        channels_kept = []
        for channels, width in self.groups:
            index = None if width == channels else function(channels, width)
            channels_kept.append(set(range(width) if index is None else map(int, index)))
        return tuple(
            place for place, (group, channel) in enumerate(self.places) if group < 0 or channel in channels_kept[group]
        )


def build_channel_axis(places: Sequence[tuple[int, int]], groups: Sequence[tuple[int, int]]) -> Axis:
    """Return the axis that keeps the first channels of each group.

    ``places`` lists (group, channel) for each entry of the axis; entries of group -1 are always kept. ``groups`` lists
    (number of channels, number of channels to keep) for each group.
    """
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


def within(axes: Axes, second_axes: Axes) -> Axes:
    """Return the intersection of two slices of a parameter.

    Positions in the resulting axes refer to the first slice, not to the full parameter.
    """
    shared = []
    for axis, second in zip(axes, second_axes, strict=True):
        members = positions(second)
        index = tuple(place for place, position in enumerate(sorted(positions(axis))) if position in members)
        shared.append(Axis(axis.local_size, len(index), index=None if index == tuple(range(len(index))) else index))
    return tuple(shared)


def positions(axis: Axis) -> set[int]:
    """Return the positions of the kept entries along the full axis."""
    length, part_kept = axis.part
    within = range(part_kept) if axis.index is None else axis.index
    return {part * length + place for part in range(axis.parts) for place in within}
