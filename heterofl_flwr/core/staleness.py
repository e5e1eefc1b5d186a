"""Staleness of clients' changes in asynchronous training, and a mean that reduces the weights of stale changes."""

import math
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from itertools import pairwise, starmap

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.aggregator import CheckedReply, Version
from heterofl_flwr.core.axes import Axis, within
from heterofl_flwr.core.counting_mean import CountingMean
from heterofl_flwr.core.exchanged import exchanged_dtype
from heterofl_flwr.core.slice_plan import Plan, Region

LEAST = 1e-3
"""Lower bound on the staleness factor of a change. float32 sums would lose changes with much smaller factors."""


class Clocks:
    """Counters of the global model's steps, one for each plan.

    A plan's counter is the number of steps in which this plan was the largest among the averaged replies. Such a step
    changes the entries in the plan and no others. So the number of steps that changed an entry is the sum of the
    counters of all plans that contain the entry.
    """

    def __init__(self) -> None:
        self._moved: dict[Plan, int] = {}  # for each plan: steps in which it was the largest; largest plan first

    def snapshot(self, number: int, plan: Plan, tensors: Mapping[str, Tensor]) -> Version:
        """Return a ``Version``: a slice of the model after ``number`` steps, with the current counters."""
        return Version(number, plan, tensors, dict(self._moved))

    def step(self, plans: Iterable[Plan]) -> None:
        """Count a step of the global model; ``plans`` are the plans of the averaged replies.

        The counter of the largest of ``plans`` goes up by 1. Raise ``ConfigError`` if, among the plans of this and
        earlier steps, there are two of which neither contains the other.
        """
        current = set(plans)
        ordered = largest_first({*current, *self._moved})
        largest = next((plan for plan in ordered if plan in current), None)
        self._moved = {plan: self._moved.get(plan, 0) + (plan is largest) for plan in ordered}

    def staleness(self, plan: Plan, sent: Version) -> dict[Plan, int]:
        """Return the staleness of a reply's entries, by plan.

        The staleness of an entry is the number of steps that changed the entry since the server sent the slice. To find
        an entry's staleness, look up the smallest plan in the result that contains the entry. The first plan in the
        result is ``plan``. Each later plan is smaller than the previous plan, and has a larger value.
        """
        steps = {region: number - sent.moved.get(region, 0) for region, number in self._moved.items()}
        total = sum(number for region, number in steps.items() if _contains(region, plan))
        staleness = {plan: total}
        for region, number in steps.items():
            if number and not _contains(region, plan):
                total += number
                staleness[region] = total
        return staleness


def largest_first(plans: Collection[Plan]) -> list[Plan]:
    """Return the plans, each of which contains the next; raise ``ConfigError`` if two do not contain each other."""
    ordered = sorted(plans, key=lambda plan: plan.parameters, reverse=True)
    if not all(starmap(_contains, pairwise(ordered))):
        raise ConfigError(
            "asynchronous: two levels train different parts of the model, and neither contains the other; expected "
            "each level to train a part of what the next larger one trains, or clocks='model'"
        )
    return ordered


class StaleMean(CountingMean):
    """Weighted mean change of each entry over the clients that hold it; stale changes have smaller weights.

    A client's weight is multiplied by the staleness factor ``max((1 + staleness) ** -exponent, LEAST)``. If no change
    is stale, the result equals the counting mean.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        The global state.
    clocks : Clocks
        Counters of the global model's steps; ``result`` updates them.
    exponent : float
        Exponent of the staleness factor. With 0, stale changes keep their full weights.
    one_clock : bool
        If True, every step counts as a change of all entries, as in FedBuff.
    """

    def __init__(
        self, state: Mapping[str, Tensor], *, clocks: Clocks, exponent: float = 0.0, one_clock: bool = False
    ) -> None:
        super().__init__(state)
        self._clocks, self._exponent, self._one_clock = clocks, exponent, one_clock

    @torch.no_grad()
    def add(self, reply: CheckedReply) -> None:
        """Add a client's reply."""
        plan, tensors = reply.plan, reply.tensors
        staleness = {plan: 0} if reply.sent is None else self._clocks.staleness(plan, reply.sent)
        shares = {inner: max(math.pow(1.0 + steps, -self._exponent), LEAST) for inner, steps in staleness.items()}
        if reply.sent is not None and any(staleness.values()):
            tensors = {name: self._rebased(plan, name, tensors[name], reply.sent, shares) for name in plan.axes}
        self._add_to_sums(reply, tensors)
        # Each plan contains the next one, so the weights that an entry gets telescope to weight * share.
        outer = 0.0
        for inner, share in shares.items():
            self._holders.add(inner, reply.rows, reply.weight * (share - outer))
            outer = share

    def _rebased(self, plan: Plan, name: str, tensor: Tensor, sent: Version, shares: Mapping[Plan, float]) -> Tensor:
        """Return (current slice + the client's change) times the staleness factor, entry by entry."""
        moved = (Region(self._state[name], plan.axes[name]).part() - sent.tensors[name]).contiguous()
        # In place, because allocating memory costs more than the arithmetic.
        local = moved.to(exchanged_dtype(moved)).add_(tensor.to(moved.device))
        outer = 1.0
        for inner, share in shares.items():
            if name in inner.axes:
                Region(local, _within(plan.axes[name], inner.axes[name])).scale(share / outer)
                outer = share
        return local

    def result(self) -> dict[str, Tensor]:
        """Return the new global state, and update ``clocks`` for this step. Call this once."""
        new = super().result()
        full_plan = Plan({name: tuple(Axis(size, size) for size in old.shape) for name, old in self._state.items()})
        self._clocks.step({full_plan} if self._one_clock else self._holders.plans)
        return new


_contains = lru_cache(maxsize=4096)(Plan.contains)
_within = lru_cache(maxsize=4096)(within)
