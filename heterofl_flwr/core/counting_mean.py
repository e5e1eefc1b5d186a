"""The counting mean: a streaming mean of each entry over the clients that held it (section 3.1)."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise, starmap
from typing import ClassVar, Literal, NamedTuple

import numpy
import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.core.axes import Axes
from heterofl_flwr.core.reply_checks import LabelRows, check_reply
from heterofl_flwr.core.slice_plan import Place, Plan, Region, is_prefix

Count = float | Tensor
"""How many clients held a slice: a number for all of it, or one for each of its rows."""

Weights = Literal["equal", "examples"]
"""What a client counts in a mean: once, or by its examples."""


def sum_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type to sum in: at least single precision, whatever the parameter's."""
    return torch.promote_types(parameter.dtype, torch.float32)


def empty_sum(parameter: Tensor) -> Tensor:
    """Return memory to sum in."""
    dtype = sum_dtype(parameter)
    if parameter.device.type != "cpu":
        return torch.empty_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)
    # numpy asks Linux for huge pages. The first touch of a large sum is most of the cost of an aggregation, and it
    # is four times faster so.
    return torch.from_numpy(numpy.empty(parameter.shape, numpy.float64 if dtype == torch.float64 else numpy.float32))


class Nested(NamedTuple):
    """Slices of which each lies within the one before; in two dimensions, what one has more than the next is an L."""

    slices: tuple[Axes, ...]  # from the largest on
    opened: tuple[int, ...]  # the tensor's shape with parts as dimensions of their own
    shells: tuple[tuple[Place, ...], ...]  # what lies outside of all, what the first has more than the second, ...


@lru_cache(maxsize=4096)
def nest(slices: tuple[Axes, ...]) -> Nested | None:
    """Return slices that are prefixes from the largest on, or None if they are not nested."""
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
    core = tuple(map(slice, bounds[-1]))
    return Nested(tuple(ordered), bounds[0], (*starmap(find_shell, pairwise(bounds)), (core,)))


def find_shell(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[Place, ...]:
    """Return places that do not overlap and together are the outer box without the inner one."""
    return tuple(
        (*map(slice, inner[:number]), slice(inner[number], outer[number]), *map(slice, outer[number + 1 :]))
        for number in range(len(outer))
        if inner[number] < outer[number]
    )


def mean_in_place(total: Tensor, old: Tensor, counts: Mapping[Axes, Count]) -> None:
    """Divide a sum by its counts, in place; entries that nobody held take the old value."""
    nested = nest(tuple(counts)) if all(map(is_prefix, counts)) else None
    # Where some slices are counted by row and others cut the rows, a shell would cut a count.
    if nested is None or len(set(map(type, counts.values()))) > 1:
        _divide(total, old, held_by(total, counts))
        return
    total, old = total.view(nested.opened), old.view(nested.opened)
    held = accumulate([0.0, *(counts[axes] for axes in nested.slices)])
    for count, places in zip(held, nested.shells, strict=True):
        for place in places:
            _divide(total[place], old[place], count)


def held_by(total: Tensor, counts: Mapping[Axes, Count]) -> Tensor:
    """Return how many held each entry."""
    held = torch.zeros_like(total)
    for axes, count in counts.items():
        number = torch.as_tensor(count, dtype=total.dtype, device=total.device)
        by_row = number.view(-1, *[1] * (len(axes) - 1)) if number.dim() else number
        Region(held, axes).add(by_row.expand([axis.kept for axis in axes]).contiguous(), 1.0)
    return held


def _divide(total: Tensor, old: Tensor, count: Count) -> None:
    """Divide by the count, of all or of each row, in place; where it is 0, write the old value."""
    if isinstance(count, Tensor):
        count = count.view(-1, *[1] * (total.dim() - 1)) if count.dim() == 1 else count
        held = count.to(total)
        total.div_(held.where(held > 0, 1.0))
        if not held.all():
            torch.where(held > 0, total, old.to(total.dtype), out=total)
    elif count > 0:
        total.div_(count)
    else:
        total.copy_(old)


class Aggregator:
    """A streaming mean over clients that hold different parts of one model.

    Parameters
    ----------
    global_state : Mapping[str, Tensor]
        The state that the replies started from. It is read, never changed; entries that no client held keep its value.
    label_rows : Sequence[str]
        Parameters whose rows belong to classes, such as ``["linear.weight", "linear.bias"]``. A client's rows count
        for the classes that it names in ``labels``.
    extra_rows : bool
        Whether rows beyond the classes, such as the embedding of [MASK], count for every holder; otherwise they count
        for no client that names labels (``Fidelity.extra_rows``).
    largest : float
        A reply with an entry of a larger magnitude is rejected; by default only one that is not finite. Beyond it, the
        sum of several replies could overflow.
    norm_bound : float
        A reply that is further from the global state than this, in the L2 norm over its entries, is rejected; 0 for no
        bound.

    Attributes
    ----------
    replies : int
        How many replies were added.
    by_entry : bool
        Whether each entry of the result comes from that entry of the replies alone, so that a server optimiser can
        step along it.

    Examples
    --------
    >>> state = {"linear.weight": torch.zeros(2, 4)}
    >>> aggregator = Aggregator(state, label_rows=["linear.weight"])
    >>> plan = Plan.between(state, {"linear.weight": (2, 2)})
    >>> aggregator.add(plan, {"linear.weight": torch.ones(2, 2)}, labels=[1])
    >>> aggregator.result()["linear.weight"]
    tensor([[0., 0., 0., 0.],
            [1., 1., 0., 0.]])
    """

    by_entry: ClassVar[bool] = True

    def __init__(
        self,
        global_state: Mapping[str, Tensor],
        label_rows: Sequence[str] = (),
        *,
        extra_rows: bool = True,
        largest: float = math.inf,
        norm_bound: float = 0.0,
    ) -> None:
        self._state = {name: tensor.detach() for name, tensor in global_state.items()}
        self._start: Mapping[str, Tensor] = self._state  # what the next reply started from
        self._rows = LabelRows(self._state, label_rows, extra_rows=extra_rows)
        self._limits = {"largest": largest, "norm_bound": norm_bound}
        self._sums: dict[str, Tensor] = {}
        # How many clients held each label row of a plan, and last how many held the plan.
        self._holders: dict[Plan, Tensor] = {}
        self.replies = 0
        self._open = True

    @torch.no_grad()
    def add(
        self, plan: Plan, sub: Mapping[str, Tensor], *, labels: Sequence[int] | None = None, weight: float = 1.0
    ) -> None:
        """Add one client's reply.

        Parameters
        ----------
        plan : Plan
            What the client held.
        sub : Mapping[str, Tensor]
            Its parameters, in the plan's shapes and the global model's dtypes.
        labels : Sequence[int] | None
            The classes whose rows count; None means all rows.
        weight : float
            The client's weight in the mean; HeteroFL counts every client once.

        Raises
        ------
        ReplyError
            If anything about the reply is wrong. It is rejected as a whole, and the sum is as it was.
        """
        self._check_open()
        if plan not in self._holders:
            plan.check_state(self._state)
            owns = {name: self._state[name] for name in plan.axes}
            whole = [f"{name} ({own.dtype})" for name, own in owns.items() if not own.is_floating_point()]
            if whole:
                raise ConfigError(f"only floating point can be averaged; leave {', '.join(whole[:5])} out of the plan")
        check_reply(self._start, plan, sub, weight, **self._limits)
        rows = self._rows.held(plan, labels)
        self._collect(plan, sub, rows, float(weight))
        self._hold(plan, rows, float(weight))
        self.replies += 1

    def _hold(self, plan: Plan, rows: Tensor | None, weight: float) -> None:
        """Add to how many clients hold the entries of a plan."""
        held = self._holders.setdefault(plan, torch.zeros(self._rows.most + 1, dtype=torch.float64))
        held[slice(-1) if rows is None else rows] += weight
        held[-1] += weight

    def _collect(self, plan: Plan, sub: Mapping[str, Tensor], rows: Tensor | None, weight: float) -> None:
        """Add a reply that was checked to the sums."""
        for name, axes in plan.axes.items():
            local, first = self._entries(plan, name, sub[name]), name not in self._sums
            size = self._rows.sizes.get(name)
            own = None if rows is None or size is None else rows[rows < size].to(local.device)
            if first:
                self._sums[name] = empty_sum(self._state[name])
            region = Region(self._sums[name], axes)
            if first and region.whole and weight == 1 and own is None:
                # The first reply is copied: zeroing a large sum just to add to it costs as much again.
                region.view.copy_(local)
                continue
            if first:
                self._sums[name].zero_()
            region.add(local, weight, own)

    def _entries(self, plan: Plan, name: str, own: Tensor) -> Tensor:
        """Return what of a client's parameter is added to the sum."""
        return own.to(self._state[name].device)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Return the new global state and end the aggregation.

        The tensors are new, in the dtypes of the old ones. They are the sums, divided in place, so an aggregator
        gives its result once.
        """
        self._close()
        new = {}
        for name, old in self._state.items():
            total = self._sums.pop(name, None)
            if total is not None:
                mean_in_place(total, old, self._counts(name))
            new[name] = old.clone() if total is None else total.to(old.dtype)
        return new

    @torch.no_grad()
    def held(self, name: str) -> Tensor:
        """Return how many clients, by weight, held each entry of a parameter; each call counts anew."""
        old = self._state[name]
        return held_by(torch.empty_like(old, dtype=sum_dtype(old)), self._counts(name))

    def _counts(self, name: str) -> dict[Axes, Count]:
        """Return how many clients held each slice of a parameter."""
        counts: dict[Axes, Count] = {}
        rows = self._rows.sizes.get(name)
        for plan, held in self._holders.items():
            if name in plan.axes:
                axes = plan.axes[name]
                # A plan that cuts label rows takes no labels: each of its rows was held by all.
                by_row = axes and axes[0].kept == rows
                counts[axes] = counts.get(axes, 0.0) + (held[:rows] if by_row else held[-1].item())
        return counts

    def _close(self) -> None:
        self._check_open()
        self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise HeteroFLError("this aggregator has given its result: make a new one from the new global state")
