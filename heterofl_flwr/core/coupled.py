"""An axis whose entries belong to channels: the input of a layer behind a concatenation, behind a flattened image.

A channel may have several entries here, and channels of several groups may stand in one axis in any order. Each group
keeps as many channels in every axis in which it occurs, so whatever a chooser keeps of it, coupled axes stay aligned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from heterofl_flwr.core.axes import Axis
from heterofl_flwr.core.choose import Choose


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

    def chosen(self, choose: Choose) -> Axis:
        """Return this axis with the channels that ``choose`` keeps of each group."""
        if self.kept == self.full:
            return Axis(self.full, self.full)
        held = [_held(choose, channels, kept) for channels, kept in self.groups]
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


def _held(choose: Choose, channels: int, kept: int) -> set[int]:
    found = None if kept == channels else choose(channels, kept)
    return set(range(kept)) if found is None else set(map(int, found))
