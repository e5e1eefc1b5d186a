"""From a sum and the number of clients that held each slice of it to the mean.

HeteroFL's slices are nested: what a slice of level c has more than one of level d was held by the clients of the
levels a to c. So the mean needs no tensor of counts; each shell between two slices is divided by one number.
"""

from collections.abc import Mapping
from itertools import pairwise, starmap

import numpy
import torch
from torch import Tensor

from heterofl_flwr.core.axes import Axes, Axis
from heterofl_flwr.core.region import Region, is_prefix, shell, size_of

Count = float | Tensor
"""How many clients held a slice: a number for all of it, or one for each of its rows."""


def zeros_like(parameter: Tensor) -> Tensor:
    """Return zeros to sum in: at least in single precision, whatever the parameter's."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    if parameter.device.type != "cpu":
        return torch.zeros_like(parameter, dtype=dtype)
    # numpy asks Linux for huge pages. The first touch of a large sum is most of the cost of an aggregation, and it
    # is four times faster so.
    empty = numpy.empty(parameter.shape, dtype=numpy.float64 if dtype == torch.float64 else numpy.float32)
    return torch.from_numpy(empty).zero_()


def mean_in_place(total: Tensor, old: Tensor, counts: Mapping[Axes, Count]) -> None:
    """Divide a sum by its counts, in place; entries that nobody held take the old value."""
    slices = sorted(counts, key=size_of, reverse=True)
    nested = all(map(is_prefix, slices)) and all(starmap(_contains, pairwise(slices)))
    if nested and not _cuts_counted_rows(counts):
        _mean_of_nested(total, old, [(axes, counts[axes]) for axes in slices])
    else:
        _mean_of_any(total, old, counts)


def _mean_of_nested(total: Tensor, old: Tensor, slices: list[tuple[Axes, Count]]) -> None:
    """Divide shell by shell, from the outermost, which nobody held, to the smallest slice."""
    outer = tuple(Axis(size, size) for size in total.shape)
    held: Count = 0.0
    for axes, count in slices:
        for part, before in zip(shell(total, outer, axes), shell(old, outer, axes), strict=True):
            _divide(part, before, held)
        held = held + count
        outer = axes
    _divide(Region(total, outer).view, Region(old, outer).view, held)


def _mean_of_any(total: Tensor, old: Tensor, counts: Mapping[Axes, Count]) -> None:
    held = torch.zeros_like(total)
    for axes, count in counts.items():
        number = torch.as_tensor(count, dtype=total.dtype, device=total.device)
        by_row = number.view(-1, *[1] * (len(axes) - 1)) if number.dim() else number
        Region(held, axes).add(by_row.expand([axis.kept for axis in axes]), 1.0)
    total.div_(held.where(held > 0, 1.0))
    torch.where(held > 0, total, old.to(total.dtype), out=total)


def _divide(total: Tensor, old: Tensor, count: Count) -> None:
    """Divide by the count, in place; where it is 0, take the old value."""
    if isinstance(count, Tensor):
        held = count > 0
        by_row, held_row = (
            rows.view(-1, *[1] * (total.dim() - 1)) for rows in (count.where(held, 1.0).to(total), held)
        )
        total.div_(by_row)
        if not held.all():
            torch.where(held_row.to(total.device), total, old, out=total)
    elif count > 0:
        total.div_(count)
    else:
        total.copy_(old)


def _cuts_counted_rows(counts: Mapping[Axes, Count]) -> bool:
    """Whether some slices are counted by row while others cut the rows, so that a shell would cut a count."""
    by_row = any(isinstance(count, Tensor) for count in counts.values())
    return by_row and any(axes[0].kept < axes[0].full for axes in counts)


def _contains(large: Axes, small: Axes) -> bool:
    return all(mine.contains(its) for mine, its in zip(large, small, strict=True))
