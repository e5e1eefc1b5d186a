"""Nested slices of one parameter, from the largest to the smallest, and the shells between them.

HeteroFL's slices are nested: what a slice of level c has more than one of level d was held by the clients of the
levels a to c. So a mean needs no tensor of counts; each shell is divided by one number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, starmap

from torch import Tensor

from heterofl_flwr.core.axes import Axes, Axis
from heterofl_flwr.core.region import is_prefix

Place = tuple[slice, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Slices of which each lies within the one before.

    Attributes
    ----------
    slices
        The slices, from the largest on.
    cut
        The numbers of the axes that some slice cuts.
    """

    slices: tuple[Axes, ...]
    cut: frozenset[int]
    _opened: tuple[int, ...]
    _shells: tuple[tuple[Place, ...], ...]

    def shells(self, tensor: Tensor) -> Iterator[list[Tensor]]:
        """Yield what lies outside of all slices, what the first has more than the second, ..., and the last slice.

        Each is given as views that do not overlap. In two dimensions a shell is an L: what stands below the inner
        slice, and what stands beside it.
        """
        view = tensor if len(self._opened) == tensor.dim() else tensor.view(self._opened)
        for places in self._shells:
            yield [view[place] for place in places]


@lru_cache(maxsize=4096)  # a model has few distinct shapes, and every round asks about the same ones
def chain_of(slices: tuple[Axes, ...]) -> Chain | None:
    """Return the slices as a chain, or None if they are not nested prefixes."""
    ordered = sorted(slices, key=lambda axes: [axis.kept for axis in axes], reverse=True)
    if not all(map(is_prefix, ordered)) or not all(starmap(_contains, pairwise(ordered))):
        return None
    parts = [max(axis.parts for axis in column) for column in zip(*ordered, strict=True)]
    whole = tuple(Axis(axis.full, axis.full) for axis in ordered[0])
    bounds = [_bounds(axes, parts) for axes in (whole, *ordered)]
    shells = [_shell(outer, inner) for outer, inner in pairwise(bounds)]
    core = tuple(map(slice, bounds[-1]))
    cut = frozenset(number for axes in ordered for number, axis in enumerate(axes) if axis.kept < axis.full)
    return Chain(tuple(ordered), cut, bounds[0], (*shells, (core,)))


def _contains(large: Axes, small: Axes) -> bool:
    return all(mine.contains(its) for mine, its in zip(large, small, strict=True))


def _bounds(axes: Axes, parts: list[int]) -> tuple[int, ...]:
    """Return how far a slice reaches on each dimension, the parts of an axis being a dimension of their own."""
    bounds: list[int] = []
    for axis, number in zip(axes, parts, strict=True):
        bounds += [number, axis.kept // number] if number > 1 else [axis.kept]
    return tuple(bounds)


def _shell(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[Place, ...]:
    """Return places that together are the outer box without the inner one."""
    return tuple(
        (*map(slice, inner[:number]), slice(inner[number], outer[number]), *map(slice, outer[number + 1 :]))
        for number in range(len(outer))
        if inner[number] < outer[number]
    )
