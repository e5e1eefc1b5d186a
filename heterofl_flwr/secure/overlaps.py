"""Overlaps of slices, and counts of the clients that hold an entry."""

# An overlap's entries are in the order of the global model for both clients. So word n of the mask that two clients
# share belongs to entry n of their overlap.

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heterofl_flwr.core.axes import Axis, positions, within
from heterofl_flwr.core.slice_plan import Plan, Region

Classes = NDArray[np.int64]
"""For each position of an axis, the number of its class. Positions that occur in the same slices form a class."""

COUNTS = "number of clients for "
"""Name prefix of the extra entries that count, for each classifier row, the clients that trained the row."""


def whole(slices: Sequence[Plan]) -> Plan:
    """Return the plan that holds all entries of every parameter in the slices."""
    parameters = [item for plan in slices for item in plan.axes.items()]
    return Plan({name: tuple(Axis(axis.size, axis.size) for axis in axes) for name, axes in parameters})


def as_state(vector: NDArray[np.generic], plan: Plan) -> dict[str, Tensor]:
    """Return a slice's vector as tensors by name, without a copy."""
    parts = torch.from_numpy(vector).split([prod(shape) for shape in plan.shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(plan.shapes.items(), parts, strict=True)}


def overlap(plan: Plan, second: Plan) -> Plan:
    """Return the overlap of the slices ``plan`` and ``second``, with positions relative to ``plan``."""
    return Plan({name: within(axes, second.axes[name]) for name, axes in plan.axes.items() if name in second.axes})


def add_part(vector: NDArray[np.generic], plan: Plan, part: Plan, values: NDArray[np.generic]) -> None:
    """Add ``values`` to ``vector`` in place, modulo 2^32.

    ``vector`` has the entries of ``plan``. ``values`` has the entries of ``part``, with positions relative to ``plan``.
    """
    state = as_state(vector.view(np.int32), plan)
    for name, tensor in as_state(values.view(np.int32), part).items():
        Region(state[name], part.axes[name]).add(tensor, 1)


def count_holders(plan: Plan, slices: Sequence[Plan], clients: Sequence[int]) -> NDArray[np.int32]:
    """Return, for each entry of ``plan``, how many clients hold the entry.

    ``clients`` has, for each slice, the number of clients with this slice.
    """
    counts = np.zeros(plan.parameters, np.int32)
    for slice_plan, number in zip(slices, clients, strict=True):
        if number:
            shared = overlap(plan, slice_plan)
            add_part(counts, plan, shared, np.full(shared.parameters, number, np.int32))
    return counts


def classes_of(slices: Sequence[Plan], name: str, *, rows: bool = False) -> list[Classes]:
    """Return, for each axis of a parameter, the class of each position.

    Here a class is a group of positions that occur in the same slices. With ``rows``, each position on axis 0 has a
    class of its own.
    """
    axes = zip(*(plan.axes[name] for plan in slices if name in plan.axes), strict=True)
    members = ([np.isin(np.arange(axis.size), list(positions(axis))) for axis in column] for column in axes)
    classes = [np.unique(np.stack(member), axis=1, return_inverse=True)[1].reshape(-1) for member in members]
    return [np.arange(len(classes[0])), *classes[1:]] if rows else classes


def reduced(slices: Sequence[Plan], classes: Mapping[str, Sequence[Classes]]) -> list[Plan]:
    """Return the slices of a reduced model, in which a single position replaces all positions of a class."""
    return [
        Plan({name: tuple(map(_reduce, plan.axes[name], axes)) for name, axes in classes.items() if name in plan.axes})
        for plan in slices
    ]


def _reduce(axis: Axis, classes: Classes) -> Axis:
    groups = tuple(np.unique(classes[sorted(positions(axis))]).tolist())
    return Axis(int(classes.max(initial=-1)) + 1, len(groups), 1, groups)


def with_counts(slices: Sequence[Plan], rows: Sequence[str]) -> list[Plan]:
    """Return the slices, extended by entries for row counts.

    A row count is the number of clients that trained a row of one of the parameters ``rows``.
    """
    # Columns that occur in the same slices have equal counts, so one entry is enough for each row and class of
    # columns.
    by_row = {name: classes_of(slices, name, rows=True) for name in rows if any(name in plan.axes for plan in slices)}
    counts = ({COUNTS + name: axes for name, axes in plan.axes.items()} for plan in reduced(slices, by_row))
    return [Plan({**plan.axes, **axes}) for plan, axes in zip(slices, counts, strict=True)]
