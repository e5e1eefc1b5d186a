"""From a sum and the number of clients that held each slice of it to the mean.

HeteroFL's slices are nested: what a slice of level c has more than one of level d was held by the clients of the
levels a to c. So the mean needs no tensor of counts; each shell between two slices is divided by one number.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise, starmap

import numpy
import torch
from torch import Tensor

from heterofl_flwr.core.axes import Axes, Axis
from heterofl_flwr.core.region import Region, is_prefix, shell, size_of

Count = float | Tensor
"""How many clients held a slice: a number for all of it, or one for each of its rows."""


# Below this size a tensor of counts costs less than a shell for each level, and many parameters can share it.
_SMALL = 1 << 14

Divisors = dict[object, Tensor]
"""Counts of small parameters, for those with equal slices to share."""


def empty_sum(parameter: Tensor) -> Tensor:
    """Return memory to sum in: at least in single precision, whatever the parameter's."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    if parameter.device.type != "cpu":
        return torch.empty_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)
    # numpy asks Linux for huge pages. The first touch of a large sum is most of the cost of an aggregation, and it
    # is four times faster so.
    return torch.from_numpy(numpy.empty(parameter.shape, numpy.float64 if dtype == torch.float64 else numpy.float32))


def mean_in_place(total: Tensor, old: Tensor, counts: Mapping[Axes, Count], divisors: Divisors) -> None:
    """Divide a sum by its counts, in place; entries that nobody held take the old value."""
    by_row = any(isinstance(count, Tensor) for count in counts.values())
    if total.numel() <= _SMALL and not by_row:
        held = _held(total, counts, divisors)
        if held.all():
            total.div_(held)
            return
    slices = sorted(counts, key=size_of, reverse=True)
    nested = all(map(is_prefix, slices)) and all(starmap(_contains, pairwise(slices)))
    # Where some slices are counted by row and others cut the rows, a shell would cut a count.
    if nested and not (by_row and any(axes[0].kept < axes[0].full for axes in slices)):
        _mean_of_nested(total, old, [(axes, counts[axes]) for axes in slices])
    else:
        _mean_of_any(total, old, counts)


def _mean_of_nested(total: Tensor, old: Tensor, slices: list[tuple[Axes, Count]]) -> None:
    """Divide shell by shell, from the outermost, which nobody held, to the smallest slice."""
    outer = tuple(Axis(size, size) for size in total.shape)
    held: Count = 0.0
    for axes, count in slices:
        _divide_all(shell(total, outer, axes), shell(old, outer, axes), held)
        held = held + count
        outer = axes
    _divide_all([Region(total, outer).view], [Region(old, outer).view], held)


def _mean_of_any(total: Tensor, old: Tensor, counts: Mapping[Axes, Count]) -> None:
    held = _held(total, counts, {})
    total.div_(held.where(held > 0, 1.0))
    torch.where(held > 0, total, old.to(total.dtype), out=total)


def _held(total: Tensor, counts: Mapping[Axes, Count], divisors: Divisors) -> Tensor:
    """Return how many held each entry."""
    key = (
        None
        if any(isinstance(count, Tensor) for count in counts.values())
        else (total.dtype, total.device, *counts.items())
    )
    if key in divisors:
        return divisors[key]
    held = torch.zeros_like(total)
    for axes, count in counts.items():
        number = torch.as_tensor(count, dtype=total.dtype, device=total.device)
        by_row = number.view(-1, *[1] * (len(axes) - 1)) if number.dim() else number
        Region(held, axes).add(by_row.expand([axis.kept for axis in axes]).contiguous(), 1.0)
    divisors[key] = held
    return held


def _divide_all(totals: Iterable[Tensor], olds: Iterable[Tensor], count: Count) -> None:
    """Divide views by one count, in place; where it is 0, take the old value."""
    if not isinstance(count, Tensor) and count > 0:
        for total in totals:
            total.div_(count)
        return
    for total, old in zip(totals, olds, strict=True):
        if isinstance(count, Tensor):
            _divide_rows(total, old, count)
        else:
            total.copy_(old)


def _divide_rows(total: Tensor, old: Tensor, count: Tensor) -> None:
    held = count > 0
    shape = (-1, *[1] * (total.dim() - 1))
    total.div_(count.where(held, 1.0).to(total).view(shape))
    if not held.all():
        torch.where(held.view(shape).to(total.device), total, old, out=total)


def _contains(large: Axes, small: Axes) -> bool:
    return all(mine.contains(its) for mine, its in zip(large, small, strict=True))
