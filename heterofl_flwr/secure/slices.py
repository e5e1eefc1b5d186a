"""Slices, as plans, and what several of them share: where two overlap, and how many clients hold each entry.

What two slices share is a slice too, and both sides know its entries in the same order, that of the global model. So
the n-th word of the stream of two clients is that of the n-th entry that they share.
"""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heterofl_flwr.core.axes import Axes, Axis, positions
from heterofl_flwr.core.slice_plan import Plan, Region

Classes = NDArray[np.int64]
"""For each position of an axis the number of its class; positions of a class are in the same slices."""

COUNTS = "how many count for "
"""What stands before a parameter's name for the numbers of clients that count in its rows."""


def whole(slices: Sequence[Plan]) -> Plan:
    """Return the slice that holds everything of the parameters of these slices."""
    held = [item for own in slices for item in own.axes.items()]
    return Plan({name: tuple(Axis(axis.full, axis.full) for axis in axes) for name, axes in held})


def as_state(vector: NDArray[np.generic], own: Plan) -> dict[str, Tensor]:
    """Return the parameters of a slice, one after another in a vector, as tensors that share its memory."""
    parts = torch.from_numpy(vector).split([prod(shape) for shape in own.shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(own.shapes.items(), parts, strict=True)}


def overlap(own: Plan, other: Plan) -> Plan:
    """Return what two slices share, as a slice of the first."""
    return Plan({name: _within(axes, other.axes[name]) for name, axes in own.axes.items() if name in other.axes})


def _within(one: Axes, two: Axes) -> Axes:
    found = []
    for own, other in zip(one, two, strict=True):
        held = positions(other)
        places = tuple(place for place, position in enumerate(sorted(positions(own))) if position in held)
        found.append(Axis(own.kept, len(places), 1, None if places == tuple(range(len(places))) else places))
    return tuple(found)


def add_part(vector: NDArray[np.generic], own: Plan, part: Plan, values: NDArray[np.generic]) -> None:
    """Add a vector of a part of a slice to one of the slice, in place, modulo 2^32."""
    state = as_state(vector.view(np.int32), own)
    for name, added in as_state(values.view(np.int32), part).items():
        Region(state[name], part.axes[name]).add(added, 1)


def count_holders(own: Plan, slices: Sequence[Plan], clients: Sequence[int]) -> NDArray[np.int32]:
    """Return how many clients hold each entry of a slice, as a vector; so many have each of the slices."""
    counts = np.zeros(own.parameters, np.int32)
    for other, number in zip(slices, clients, strict=True):
        if number:
            both = overlap(own, other)
            add_part(counts, own, both, np.full(both.parameters, number, np.int32))
    return counts


def classes_of(slices: Sequence[Plan], name: str) -> list[Classes]:
    """Return the classes of each axis of a parameter."""
    axes = zip(*(own.axes[name] for own in slices if name in own.axes), strict=True)
    held = ([np.isin(np.arange(axis.full), list(positions(axis))) for axis in column] for column in axes)
    return [np.unique(np.stack(member), axis=1, return_inverse=True)[1].reshape(-1) for member in held]


def reduced(slices: Sequence[Plan], classes: Mapping[str, Sequence[Classes]]) -> list[Plan]:
    """Return some parameters of slices with classes in place of positions, of which one stands for all."""
    return [
        Plan({name: tuple(map(_reduce, own.axes[name], some)) for name, some in classes.items() if name in own.axes})
        for own in slices
    ]


def _reduce(axis: Axis, classes: Classes) -> Axis:
    kept = tuple(np.unique(classes[sorted(positions(axis))]).tolist())
    return Axis(int(classes.max()) + 1, len(kept), 1, kept)


def with_counts(slices: Sequence[Plan], rows: Sequence[str]) -> list[Plan]:
    """Return the slices with entries for how many clients count in each row of parameters whose rows belong to classes.

    Who counts in a row is the same wherever the same clients hold it, so each class of columns has one number a row.
    """
    classes = {name: classes_of(slices, name) for name in rows if any(name in own.axes for own in slices)}
    by_row = {name: [np.arange(len(first)), *others] for name, (first, *others) in classes.items()}
    named = ({COUNTS + name: axes for name, axes in own.axes.items()} for own in reduced(slices, by_row))
    return [Plan({**own.axes, **more}) for own, more in zip(slices, named, strict=True)]
