"""The counting mean: each entry is averaged over the clients that hold it (section 3.1 of the paper)."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import accumulate, pairwise, starmap
from typing import Literal, NamedTuple

import numpy
import torch
from torch import Tensor

from heterofl_flwr.core.aggregator import CheckedReply
from heterofl_flwr.core.axes import Axes
from heterofl_flwr.core.exchanged import exchanged_dtype
from heterofl_flwr.core.slice_plan import Place, Plan, Region, is_prefix

Count = float | Tensor
"""Total weight of the clients that hold a slice: one number, or a tensor with a number for each row."""

Weights = Literal["equal", "examples"]
"""Weight of a client in a mean: 1 (equal), or the client's number of examples (examples)."""


def empty_sum(parameter: Tensor) -> Tensor:
    """Return an uninitialised tensor for a parameter's sum over clients."""
    dtype = exchanged_dtype(parameter)
    if parameter.device.type != "cpu":
        return torch.empty_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)
    # Page faults at the first write to a large sum are most of the cost of an aggregation. numpy asks Linux for huge
    # pages, which makes this write four times faster.
    return torch.from_numpy(numpy.empty(parameter.shape, numpy.float64 if dtype == torch.float64 else numpy.float32))


class Nested(NamedTuple):
    """Nested slices of one parameter, from the largest to the smallest, and shells that divide the parameter.

    The first shell has the entries outside all slices. The last shell is the smallest slice. Each shell between these
    two has the entries of a slice that the next smaller slice lacks. A shell is a tuple of boxes.
    """

    slices: tuple[Axes, ...]  # from the largest to the smallest
    opened: tuple[int, ...]  # the tensor's shape, with parts as separate dimensions
    shells: tuple[tuple[Place, ...], ...]  # boxes of: tensor minus slice 0, slice 0 minus slice 1, ..., the last slice


@lru_cache(maxsize=4096)
def nest(slices: tuple[Axes, ...]) -> Nested | None:
    """Sort prefix slices of one parameter from the largest to the smallest, and find their shells (see ``Nested``).

    If an axis has several equal parts, such as attention heads, a slice has a prefix of each part. Return None if the
    slices are not nested, or if they differ in an axis's number of parts.
    """
    ordered = sorted(slices, key=lambda axes: [axis.local_size for axis in axes], reverse=True)
    parts: list[int] = []
    bounds: list[tuple[int, ...]] = []
    for column in zip(*ordered, strict=True):
        sizes = [axis.local_size for axis in column]
        divided = {axis.parts for axis in column if axis.local_size < axis.size} or {1}
        if sizes != sorted(sizes, reverse=True) or len(divided) > 1:
            return None
        parts += divided
    # Upper bounds in each dimension: first those of the full tensor, then those of each slice.
    for lengths in ([axis.size for axis in ordered[0]], *([axis.local_size for axis in axes] for axes in ordered)):
        pairs = zip(lengths, parts, strict=True)
        bounds.append(tuple(bound for length, n in pairs for bound in ([n, length // n] if n > 1 else [length])))
    core = tuple(map(slice, bounds[-1]))
    return Nested(tuple(ordered), bounds[0], (*starmap(find_shell, pairwise(bounds)), (core,)))


def find_shell(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[Place, ...]:
    """Return disjoint boxes that cover the box ``outer`` without the box ``inner``.

    ``outer`` and ``inner`` are the shapes of the boxes; both boxes begin at index 0.
    """
    return tuple(
        (*map(slice, inner[:number]), slice(inner[number], outer[number]), *map(slice, outer[number + 1 :]))
        for number in range(len(outer))
        if inner[number] < outer[number]
    )


def mean_in_place(total: Tensor, old: Tensor, counts: Mapping[Axes, Count]) -> None:
    """Divide each entry of the sum ``total`` in place by the summed weight of the clients that hold the entry.

    ``counts`` maps each slice to the summed weight of the clients with exactly this slice. Entries that no client holds
    take their value from ``old``.
    """
    nested = nest(tuple(counts)) if all(map(is_prefix, counts)) else None
    # Shells do not work if some slices are counted by row and others drop rows.
    if nested is None or len(set(map(type, counts.values()))) > 1:
        _divide(total, old, held_by(total, counts))
        return
    total, old = total.view(nested.opened), old.view(nested.opened)
    # The holders of a shell's entries are the clients of all slices that contain the shell.
    sums = accumulate([0.0, *(counts[axes] for axes in nested.slices)])
    for count, places in zip(sums, nested.shells, strict=True):
        for place in places:
            _divide(total[place], old[place], count)


def held_by(total: Tensor, counts: Mapping[Axes, Count]) -> Tensor:
    """Return the summed weight of the clients that hold each entry, as a tensor of the shape and dtype of ``total``.

    The values of ``total`` are not used. ``counts`` maps each slice to the summed weight of the clients with exactly
    this slice.
    """
    weights = torch.zeros_like(total)
    for axes, count in counts.items():
        number = torch.as_tensor(count, dtype=total.dtype, device=total.device)
        by_row = number.view(-1, *[1] * (len(axes) - 1)) if number.dim() else number
        Region(weights, axes).add(by_row.expand([axis.local_size for axis in axes]).contiguous(), 1.0)
    return weights


def _divide(total: Tensor, old: Tensor, count: Count) -> None:
    if isinstance(count, Tensor):
        count = count.view(-1, *[1] * (total.dim() - 1)) if count.dim() == 1 else count
        divisor = count.to(total)
        total.div_(divisor.where(divisor > 0, 1.0))
        if not divisor.all():
            torch.where(divisor > 0, total, old.to(total.dtype), out=total)
    elif count > 0:
        total.div_(count)
    else:
        total.copy_(old)


class Holders:
    """Running totals, by plan, of the weights that clients have in the mean."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self._weights: dict[Plan, float] = {}
        # Weight of each row, by parameter name, where a client of the plan does not count in all rows.
        self._by_row: dict[Plan, dict[str, Tensor]] = {}

    @property
    def plans(self) -> Iterable[Plan]:
        """The distinct plans of the clients."""
        return self._weights.keys()

    def add(self, plan: Plan, rows: Mapping[str, Tensor], weight: float) -> None:
        """Add a client's weight to the totals of its plan.

        ``rows`` maps names of parameters to the rows that get the weight. All rows of a parameter get it if ``rows``
        lacks the parameter, or if the plan slices the parameter's rows.
        """
        before = self._weights.get(plan, 0.0)
        by_row = self._by_row.setdefault(plan, {})
        for name in rows.keys() & plan.axes.keys() - by_row.keys():
            axis = plan.axes[name][0]
            if axis.local_size == axis.size:
                by_row[name] = torch.full((axis.size,), before, dtype=torch.float64)
        for name, weights in by_row.items():
            weights[rows.get(name, slice(None))] += weight
        self._weights[plan] = before + weight

    def counts(self, name: str) -> dict[Axes, Count]:
        """Return, for each slice of the parameter ``name``, the total weight of the clients with exactly this slice."""
        counts: dict[Axes, Count] = {}
        for plan, weight in self._weights.items():
            if name in plan.axes:
                axes = plan.axes[name]
                counts[axes] = counts.get(axes, 0.0) + self._by_row[plan].get(name, weight)
        return counts

    @torch.no_grad()
    def holders(self, name: str) -> Tensor:
        """Return, for each entry of the parameter ``name``, the total weight of the clients that hold the entry."""
        old = self._state[name]
        return held_by(torch.empty_like(old, dtype=exchanged_dtype(old)), self.counts(name))


class CountingMean:
    """Weighted mean of each entry over the clients that hold it: the aggregator of HeteroFL.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        The global state. Entries that no client holds keep their value.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state, self._holders = state, Holders(state)
        self._sums: dict[str, Tensor] = {}

    def add(self, reply: CheckedReply) -> None:
        """Add a client's reply."""
        self._add_to_sums(reply, reply.tensors)
        self._holders.add(reply.plan, reply.rows, reply.weight)

    @torch.no_grad()
    def _add_to_sums(self, reply: CheckedReply, tensors: Mapping[str, Tensor]) -> None:
        """Add a client's ``tensors``, multiplied by its weight. Parameters that ``tensors`` lacks are not added."""
        for name, local_tensor in tensors.items():
            old = self._state[name]
            local, is_first = local_tensor.to(old.device), name not in self._sums
            index = reply.rows[name].to(local.device) if name in reply.rows else None
            if is_first:
                self._sums[name] = empty_sum(old)
            region = Region(self._sums[name], reply.plan.axes[name])
            if is_first and region.is_whole and reply.weight == 1 and index is None:
                # Copying the first reply saves zeroing the sum, which costs as much as the addition.
                region.view.copy_(local)
                continue
            if is_first:
                self._sums[name].zero_()
            region.add(local, reply.weight, index)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Return the new global state; call this once, because it changes the sums."""
        new = {}
        for name, old in self._state.items():
            total = self._sums.pop(name, None)
            if total is not None:
                mean_in_place(total, old, self._holders.counts(name))
            new[name] = old.clone() if total is None else total.to(old.dtype)
        return new

    def holders(self, name: str) -> Tensor:
        """Return, for each entry of the parameter ``name``, the total weight of the clients that hold the entry."""
        return self._holders.holders(name)
