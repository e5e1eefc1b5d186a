"""Slices and what several of them share: in which entries two overlap, and how many clients hold each entry.

What two slices share is a slice too, and both sides know its entries in the same order, that of the global model. So
the n-th word of the stream of two clients is that of the n-th entry that they share.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heterofl_flwr.core.axes import Axes, Axis, positions
from heterofl_flwr.core.counting_mean import held_by
from heterofl_flwr.core.plan import Region

Slice = Mapping[str, Axes]

COUNTS = "how many count for "
"""What stands before a parameter's name for the numbers of clients that count in its rows."""


def shapes_of(own: Slice) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of a slice."""
    return {name: tuple(axis.kept for axis in axes) for name, axes in own.items()}


def size(own: Slice) -> int:
    """Return how many entries a slice has."""
    return sum(map(prod, shapes_of(own).values()))


def whole(slices: Sequence[Slice]) -> dict[str, Axes]:
    """Return the slice that holds everything of the parameters of these slices."""
    return {name: tuple(Axis(axis.full, axis.full) for axis in axes) for own in slices for name, axes in own.items()}


def as_state(vector: NDArray[np.generic], own: Slice) -> dict[str, Tensor]:
    """Return the parameters of a slice, one after another in a vector, as tensors that share its memory."""
    shapes = shapes_of(own)
    parts = torch.from_numpy(vector).split([prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


class Overlap:
    """What two slices share, as it lies in the first."""

    def __init__(self, own: Slice, other: Slice) -> None:
        self._own = own
        self._axes = {name: _within(axes, other[name]) for name, axes in own.items() if name in other}
        self.size = size(self._axes)

    def add(self, vector: NDArray[np.uint32], values: NDArray[np.uint32]) -> None:
        """Add a vector of what both share to one of the first slice, in place."""
        state = as_state(vector.view(np.int32), self._own)
        for name, part in as_state(values.view(np.int32), self._axes).items():
            Region(state[name], self._axes[name]).add(part, 1)


def _within(one: Axes, two: Axes) -> Axes:
    """Return what two slices of a parameter share, as a slice of the first."""
    found = []
    for own, other in zip(one, two, strict=True):
        held = positions(other)
        places = tuple(place for place, position in enumerate(sorted(positions(own))) if position in held)
        found.append(Axis(own.kept, len(places), 1, None if places == tuple(range(len(places))) else places))
    return tuple(found)


def count_holders(own: Slice, slices: Sequence[Slice], clients: Sequence[int]) -> NDArray[np.float32]:
    """Return how many clients hold each entry of a slice, as a vector; so many have each of the slices."""
    counts = np.zeros(size(own), np.float32)
    for name, total in as_state(counts, own).items():
        held: Counter[Axes] = Counter()
        for other, number in zip(slices, clients, strict=True):
            if name in other and number:
                held[_within(own[name], other[name])] += number
        total.copy_(held_by(total, held))
    return counts


def reduced(slices: Sequence[Slice], names: Sequence[str], *, rows: bool = False) -> list[dict[str, Axes]]:
    """Return some parameters of slices with classes in place of positions; with ``rows``, axis 0 stays as it is.

    Positions of a class are in the same slices, so one of them stands for all.
    """
    small: list[dict[str, Axes]] = [{} for _ in slices]
    for name in names:
        held = [(own[name], found) for own, found in zip(slices, small, strict=True) if name in own]
        for number, classes in enumerate(classes_of(slices, name)):
            if rows and number == 0:
                classes = np.arange(len(classes))
            for axes, found in held:
                kept = tuple(np.unique(classes[sorted(positions(axes[number]))]).tolist())
                found[name] = (*found.get(name, ()), Axis(int(classes.max()) + 1, len(kept), 1, kept))
    return small


def classes_of(slices: Sequence[Slice], name: str) -> list[NDArray[np.int64]]:
    """Return for each axis of a parameter the class of each position."""
    axes = zip(*(own[name] for own in slices if name in own), strict=True)
    held = ([np.isin(np.arange(axis.full), list(positions(axis))) for axis in column] for column in axes)
    return [np.unique(np.stack(member), axis=1, return_inverse=True)[1].reshape(-1) for member in held]


def with_counts(slices: Sequence[Slice], rows: Sequence[str]) -> list[Slice]:
    """Return the slices with entries for how many clients count in each row of parameters whose rows belong to classes.

    Who counts in a row is the same wherever the same clients hold it, so each class of columns has one number a row.
    """
    counts = reduced(slices, [name for name in rows if any(name in own for own in slices)], rows=True)
    named = ({COUNTS + name: axes for name, axes in own.items()} for own in counts)
    return [{**own, **more} for own, more in zip(slices, named, strict=True)]
