"""Slices as positions: where two of them overlap, and how many clients hold each entry.

A slice lists, for each axis of each parameter that it has, the positions in the global model that it keeps, ascending.
What two slices have in common is then a slice too, and both sides know its entries in the same order: the n-th word of
the stream of two clients is that of the n-th entry of it. As a vector, a slice is its parameters one after another.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from heterofl_flwr.core.axes import Axes, positions

Positions = NDArray[np.int64]
Slice = Mapping[str, Sequence[Positions]]
Vector = NDArray[Any]

Counts = NDArray[np.uint16]
"""How many clients hold each entry of a slice."""

COUNTS = "how many count for "
"""What stands before a parameter's name for the numbers of clients that count in its rows."""


def slice_of(axes: Mapping[str, Axes]) -> dict[str, list[Positions]]:
    """Return the slice of a plan's axes."""
    return {name: [np.array(sorted(positions(axis)), np.int64) for axis in own] for name, own in axes.items()}


def size(own: Slice) -> int:
    """Return how many entries a slice has."""
    return sum(math.prod(map(len, axes)) for axes in own.values())


def meet(one: Slice, two: Slice) -> dict[str, list[Positions]]:
    """Return what both slices hold, in the order of the first."""
    return {
        name: [np.intersect1d(*pair, assume_unique=True) for pair in zip(axes, two[name], strict=True)]
        for name, axes in one.items()
        if name in two
    }


def union(slices: Sequence[Slice]) -> dict[str, list[Positions]]:
    """Return the smallest slice in which all of these lie; parameters are in the order in which they first come."""
    names = dict.fromkeys(name for own in slices for name in own)
    return {
        name: [
            np.unique(np.concatenate(axis)) for axis in zip(*(own[name] for own in slices if name in own), strict=True)
        ]
        for name in names
    }


def whole(shapes: Mapping[str, Sequence[int]]) -> dict[str, list[Positions]]:
    """Return the slice that has all entries of parameters of these shapes."""
    return {name: [np.arange(length) for length in shape] for name, shape in shapes.items()}


class _Place(NamedTuple):
    start: int  # in the vector of the larger slice
    shape: tuple[int, ...]
    at: tuple[Any, ...]  # slices or positions
    found: tuple[int, ...]  # the shape of what is there


class Places:
    """Where the entries of a slice are in the vector of a larger one."""

    def __init__(self, large: Slice, small: Slice) -> None:
        self.size = size(small)
        self._places: list[_Place] = []
        start = 0
        for name, axes in large.items():
            shape = tuple(map(len, axes))
            if name in small:
                local = [np.searchsorted(axis, kept) for axis, kept in zip(axes, small[name], strict=True)]
                self._places.append(_place(start, shape, local))
            start += math.prod(shape)

    def add(self, vector: Vector, values: Vector) -> None:
        """Add a vector of the small slice to one of the large slice, in place."""
        for view, index, own in self._pairs(vector, values):
            view[index] += own

    def add_number(self, vector: Vector, number: int) -> None:
        """Add a number to each of these entries, in place."""
        for start, shape, index, _ in self._places:
            vector[start : start + math.prod(shape)].reshape(shape)[index] += vector.dtype.type(number)

    def read(self, vector: Vector) -> Vector:
        """Return the entries of the small slice from a vector of the large one."""
        values = np.empty(self.size, vector.dtype)
        for view, index, own in self._pairs(vector, values):
            own[...] = view[index]
        return values

    def _pairs(self, vector: Vector, values: Vector) -> Iterator[tuple[Vector, tuple[Any, ...], Vector]]:
        done = 0
        for start, shape, index, found in self._places:
            end = done + math.prod(found)
            yield vector[start : start + math.prod(shape)].reshape(shape), index, values[done:end].reshape(found)
            done = end


def _place(start: int, shape: tuple[int, ...], local: Sequence[Positions]) -> _Place:
    """Return where a parameter's entries are; axes at the end that are held whole count as one."""
    cut = [number for number, (length, kept) in enumerate(zip(shape, local, strict=True)) if len(kept) < length]
    outer = cut[-1] + 1 if cut else 0
    shape, local = (*shape[:outer], math.prod(shape[outer:])), [*local[:outer], np.arange(math.prod(shape[outer:]))]
    found = tuple(map(len, local))
    if all(len(kept) == 0 or kept[-1] - kept[0] == len(kept) - 1 for kept in local):  # runs, as prefixes are
        firsts = [int(kept[0]) if len(kept) else 0 for kept in local]
        runs = zip(firsts, found, strict=True)
        return _Place(start, shape, tuple(slice(first, first + length) for first, length in runs), found)
    return _Place(start, shape, np.ix_(*local), found)


def count_holders(large: Slice, slices: Sequence[Slice], clients: Sequence[int]) -> Counts:
    """Return how many clients hold each entry of a slice, where so many have each of these slices."""
    counts = np.zeros(size(large), np.uint16)
    for own, number in zip(slices, clients, strict=True):
        if number:
            Places(large, meet(large, own)).add_number(counts, number)
    return counts


def classes_of(slices: Sequence[Slice], name: str, axis: int) -> tuple[Positions, Positions]:
    """Return the positions of an axis that some slice holds, and for each the number of its class.

    Positions of a class are in the same slices, so one of them stands for all.
    """
    held = [own[name][axis] for own in slices if name in own]
    everywhere = np.unique(np.concatenate(held))
    member = np.stack([np.isin(everywhere, one) for one in held])  # (slices, positions)
    return everywhere, np.unique(member, axis=1, return_inverse=True)[1].reshape(-1)


def reduced(slices: Sequence[Slice], names: Sequence[str], *, rows: bool = False) -> list[dict[str, list[Positions]]]:
    """Return some parameters of the slices with classes in place of positions; with ``rows``, axis 0 stays as it is."""
    small: list[dict[str, list[Positions]]] = [{} for _ in slices]
    for name in names:
        number = next(len(own[name]) for own in slices if name in own)
        for axis in range(number):
            everywhere, classes = classes_of(slices, name, axis)
            for own, found in zip(slices, small, strict=True):
                if name in own:
                    keep = rows and axis == 0
                    kept = own[name][0] if keep else np.unique(classes[np.isin(everywhere, own[name][axis])])
                    found.setdefault(name, []).append(kept)
    return small


def with_counts(slices: Sequence[Slice], rows: Sequence[str]) -> list[Slice]:
    """Return the slices with entries for how many clients count in each row of parameters whose rows belong to classes.

    Who counts in a row is the same wherever the same clients hold it, so each class of columns has one number a row.
    """
    held = [name for name in rows if any(name in own for own in slices)]
    counts = reduced(slices, held, rows=True)
    return [
        {**own, **{COUNTS + name: axes for name, axes in number.items()}}
        for own, number in zip(slices, counts, strict=True)
    ]


def open_rings(small: Sequence[Slice], before: Sequence[int], after: Sequence[int], least: int) -> set[int]:
    """Return the rings of reduced slices that may be unmasked; of the clients ``before``, those ``after`` are left.

    A ring is the entries that equally many clients held before. It may be unmasked if each of its entries still has the
    least number of holders.
    """
    everything = union(small)
    counts, left = (count_holders(everything, small, number) for number in (before, after))
    return {int(ring) for ring in np.unique(counts) if ring >= least and left[counts == ring].min() >= least}
