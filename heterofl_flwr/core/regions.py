"""The slice of a tensor that a client holds: read it, or add to it.

A slice whose axes all keep a prefix is a plain view, so HeteroFL's own slices need no index tensors. An axis of several
parts appears as two, (parts, entries of a part), in everything here that is not in the client's shape.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise, starmap
from typing import NamedTuple

import torch
from torch import Tensor

from heterofl_flwr.core.axes import Axes

Place = tuple[slice, ...]


class Region:
    """The entries of one tensor that one slice holds."""

    __slots__ = ("_index", "_local_shape", "_shape", "view", "whole")

    def __init__(self, tensor: Tensor, axes: Axes) -> None:
        opened, place, prefix, self._shape, self._local_shape, self.whole = _find_geometry(
            tuple((axis.full, axis.kept, axis.parts, axis.index is None) for axis in axes)
        )
        view = tensor if len(opened) == tensor.dim() else tensor.view(opened)
        self.view = view if self.whole else view[place]
        self._index = None if prefix else _build_index(axes, tensor.device)

    def part(self) -> Tensor:
        """Return the region in the client's shape; where it can be, a view of the tensor."""
        return (self.view if self._index is None else self.view[self._index]).reshape(self._local_shape)

    def read(self) -> Tensor:
        """Return a copy of the region, contiguous, in the client's shape."""
        found = self.view if self._index is None else self.view[self._index]
        return found.clone(memory_format=torch.contiguous_format).view(self._local_shape)

    def write(self, local: Tensor) -> None:
        """Put a client's tensor into the region."""
        self.view[... if self._index is None else self._index] = local.view(self._shape)

    def add(self, local: Tensor, weight: float) -> None:
        """Add ``weight`` times a client's tensor to the region."""
        if self._index is None:
            self.view.add_(local.view(self._shape) if self._shape != self._local_shape else local, alpha=weight)
        else:
            # Positions are distinct, so reading, adding and writing back counts each entry once.
            self.view[self._index] = self.view[self._index].add_(local.reshape(self._shape), alpha=weight)

    def add_rows(self, local: Tensor, rows: Tensor, weight: float) -> None:
        """Add ``weight`` times some rows of a client's tensor; the first axis must be held whole."""
        found = local.reshape(self._shape)[rows].to(self.view.dtype)
        if self._index is None:
            self.view.index_add_(0, rows, found, alpha=weight)
        else:
            place = (rows.view(-1, *[1] * (found.dim() - 1)), *self._index[1:])
            self.view[place] = self.view[place].add_(found, alpha=weight)


def is_prefix(axes: Axes) -> bool:
    """Whether every axis keeps a prefix, whole or by parts, so that the region is a plain view."""
    return all(axis.index is None for axis in axes)


# A model has few distinct shapes, and every round asks about the same ones. Positions are no part of the key: random
# slices have others in each round, which would all be kept.
@lru_cache(maxsize=4096)
def _find_geometry(
    axes: tuple[tuple[int, int, int, bool], ...],
) -> tuple[tuple[int, ...], Place, bool, tuple[int, ...], tuple[int, ...], bool]:
    """Return the tensor's shape with parts as dimensions, the region in it, and whether that is a prefix.

    Then the region's shape, the client's, and whether the region is all of the tensor. An axis is given by its full
    and its kept length, its parts, and whether it keeps a prefix.
    """
    dimensions: list[tuple[int, slice, int]] = []
    for full, kept, parts, prefix in axes:
        if parts > 1:
            dimensions.append((parts, slice(None), parts))
        dimensions.append((full // parts, slice(kept // parts) if prefix else slice(None), kept // parts))
    opened, place, shape = zip(*dimensions, strict=True) if dimensions else ((), (), ())
    local = tuple(kept for _, kept, *_ in axes)
    return opened, place, all(prefix for *_, prefix in axes), shape, local, local == tuple(full for full, *_ in axes)


def _build_index(axes: Axes, device: torch.device) -> tuple[Tensor, ...]:
    """Return index tensors that broadcast to the region, one for each of its dimensions."""
    lists: list[Tensor] = []
    for axis in axes:
        if axis.parts > 1:
            lists.append(torch.arange(axis.parts, device=device))
        kept = range(axis.part[1]) if axis.index is None else axis.index
        lists.append(torch.tensor(kept, dtype=torch.long, device=device))
    return tuple(positions.view(-1, *[1] * (len(lists) - 1 - number)) for number, positions in enumerate(lists))


class Chain(NamedTuple):
    """Slices of which each lies within the one before."""

    slices: tuple[Axes, ...]  # from the largest on
    cut: frozenset[int]  # the numbers of the axes that some slice cuts
    opened: tuple[int, ...]  # the tensor's shape with parts as dimensions of their own
    places: tuple[tuple[Place, ...], ...]

    def shells(self, tensor: Tensor) -> Iterator[list[Tensor]]:
        """Yield what lies outside of all slices, what the first has more than the second, ..., and the last slice.

        Each is given as views that do not overlap. In two dimensions a shell is an L: what stands below the inner
        slice, and what stands beside it.
        """
        view = tensor if len(self.opened) == tensor.dim() else tensor.view(self.opened)
        for places in self.places:
            yield [view[place] for place in places]


def build_chain(slices: tuple[Axes, ...]) -> Chain | None:
    """Return the slices as a chain, or None if they are not nested prefixes."""
    return _chain_prefixes(slices) if all(map(is_prefix, slices)) else None


@lru_cache(maxsize=4096)
def _chain_prefixes(slices: tuple[Axes, ...]) -> Chain | None:
    ordered = sorted(slices, key=lambda axes: [axis.kept for axis in axes], reverse=True)
    parts: list[int] = []
    bounds: list[tuple[int, ...]] = []
    for column in zip(*ordered, strict=True):
        kept = [axis.kept for axis in column]
        divided = {axis.parts for axis in column if axis.kept < axis.full} or {1}
        if kept != sorted(kept, reverse=True) or len(divided) > 1:
            return None
        parts += divided
    # How far the whole tensor and each slice reach on each dimension.
    for lengths in ([axis.full for axis in ordered[0]], *([axis.kept for axis in axes] for axes in ordered)):
        pairs = zip(lengths, parts, strict=True)
        bounds.append(tuple(bound for own, n in pairs for bound in ([n, own // n] if n > 1 else [own])))
    cut = frozenset(number for axes in ordered for number, axis in enumerate(axes) if axis.kept < axis.full)
    core = tuple(map(slice, bounds[-1]))
    return Chain(tuple(ordered), cut, bounds[0], (*starmap(_find_shell, pairwise(bounds)), (core,)))


def _find_shell(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[Place, ...]:
    """Return places that together are the outer box without the inner one."""
    return tuple(
        (*map(slice, inner[:number]), slice(inner[number], outer[number]), *map(slice, outer[number + 1 :]))
        for number in range(len(outer))
        if inner[number] < outer[number]
    )
