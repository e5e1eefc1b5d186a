"""From a sum and the number of clients that held each slice of it to the mean."""

from collections.abc import Mapping

import numpy
import torch
from torch import Tensor

from heterofl_flwr.core.axes import Axes
from heterofl_flwr.core.chain import Chain, chain_of
from heterofl_flwr.core.region import Region

Count = float | Tensor
"""How many clients held a slice: a number for all of it, or one for each of its rows."""


Divisors = dict[object, Tensor | None]
"""Counts along an axis, for parameters with equal slices to share; None where nobody held some entry."""


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
    chain = chain_of(tuple(counts))
    # Where some slices are counted by row and others cut the rows, a shell would cut a count.
    if chain is None or (by_row and 0 in chain.cut):
        _mean_of_any(total, old, counts)
        return
    # Most parameters are cut along one axis only, and one pass over memory divides them.
    divisor = None if by_row or len(chain.cut) != 1 else _divisor(total, chain, counts, divisors)
    if divisor is not None:
        total.div_(divisor)
    else:
        _mean_of_chain(total, old, chain, counts)


def _mean_of_chain(total: Tensor, old: Tensor, chain: Chain, counts: Mapping[Axes, Count]) -> None:
    """Divide shell by shell, from what nobody held to the smallest slice."""
    held: Count = 0.0
    for axes, totals, olds in zip((*chain.slices, None), chain.shells(total), chain.shells(old), strict=True):
        for part, before in zip(totals, olds, strict=True):
            _divide(part, before, held)
        if axes is not None:
            held = held + counts[axes]


def _mean_of_any(total: Tensor, old: Tensor, counts: Mapping[Axes, Count]) -> None:
    held = held_by(total, counts)
    total.div_(held.where(held > 0, 1.0))
    torch.where(held > 0, total, old.to(total.dtype), out=total)


def _divisor(total: Tensor, chain: Chain, counts: Mapping[Axes, Count], divisors: Divisors) -> Tensor | None:
    """Return how many held each entry along the only axis that is cut, in a shape that broadcasts to the sum."""
    (number,) = chain.cut
    along: dict[Axes, Count] = {(axes[number],): count for axes, count in counts.items()}
    key = (total.dtype, total.device, *along.items())
    if key not in divisors:
        held = held_by(total.new_empty(total.shape[number]), along)
        divisors[key] = held if held.all() else None
    found = divisors[key]
    return None if found is None else found.view([-1 if axis == number else 1 for axis in range(total.dim())])


def held_by(total: Tensor, counts: Mapping[Axes, Count]) -> Tensor:
    """Return how many held each entry."""
    held = torch.zeros_like(total)
    for axes, count in counts.items():
        number = torch.as_tensor(count, dtype=total.dtype, device=total.device)
        by_row = number.view(-1, *[1] * (len(axes) - 1)) if number.dim() else number
        Region(held, axes).add(by_row.expand([axis.kept for axis in axes]).contiguous(), 1.0)
    return held


def _divide(total: Tensor, old: Tensor, count: Count) -> None:
    """Divide by the count, in place; where it is 0, take the old value."""
    if isinstance(count, Tensor):
        held = count > 0
        shape = (-1, *[1] * (total.dim() - 1))
        total.div_(count.where(held, 1.0).to(total).view(shape))
        if not held.all():
            torch.where(held.view(shape).to(total.device), total, old, out=total)
    elif count > 0:
        total.div_(count)
    else:
        total.copy_(old)
