"""Asynchronous aggregation: how stale a reply is in each entry, and the mean of replies to different versions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, starmap
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.axes import Axes, Axis, positions
from heterofl_flwr.core.counting_mean import Aggregator, sum_dtype
from heterofl_flwr.core.slice_plan import Plan, Region

LEAST = 1e-3
"""The least that a stale change counts, as sums in single precision would lose what counts much less than others."""


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """What a client was sent: its slice of the global model, how many steps that had taken, and what they had moved.

    The slice alone is kept, so that a server holds what it has sent, and not the whole model of each step.
    """

    number: int
    plan: Plan
    tensors: Mapping[str, Tensor]
    moved: Mapping[Plan, int]

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The global model, of which nothing but the slice is known; the rest is zeros."""
        found = {}
        for name, axes in self.plan.axes.items():
            found[name] = self.tensors[name].new_zeros([axis.full for axis in axes])
            Region(found[name], axes).write(self.tensors[name])
        return found


class Clocks:
    """Which entries the steps of the global model moved.

    Entries that the clients of the same levels hold form a region, and the clock of a region counts the steps that
    moved it. A reply's staleness in a region is that clock now, less what it was when the client was sent its slice.
    """

    def __init__(self, version: int = 0) -> None:
        self.version = version  # how many steps the model has taken
        self._moved: dict[Plan, int] = {}  # how many moved the entries of which plan, from the largest on

    def snapshot(self, plan: Plan, tensors: Mapping[str, Tensor]) -> Version:
        """Return the present version of the model, of which a client is sent this slice."""
        return Version(self.version, plan, tensors, dict(self._moved))

    def step(self, plans: Iterable[Plan]) -> None:
        """Note a step that moved the entries of these plans, of which each must lie within the next larger one."""
        own = set(plans)
        ordered = sorted({*own, *self._moved}, key=lambda plan: plan.parameters, reverse=True)
        if not all(starmap(_contains, pairwise(ordered))):
            raise ConfigError(
                "asynchronous: levels hold other parts of the model, of which none is inside the other; expected each "
                "level to hold a part of what the next larger one holds"
            )
        largest = next((plan for plan in ordered if plan in own), None)
        self._moved = {plan: self._moved.get(plan, 0) + (plan is largest) for plan in ordered}
        self.version += 1

    def staleness(self, plan: Plan, sent: Version) -> dict[Plan, int]:
        """Return how stale a reply to a version is: in its plan, and then in each smaller one in it."""
        steps = {own: number - sent.moved.get(own, 0) for own, number in self._moved.items()}
        found = {plan: sum(number for own, number in steps.items() if _contains(own, plan))}
        for own, number in steps.items():
            if number and not _contains(own, plan):
                found[own] = number + found[next(reversed(found))]
        return found


@lru_cache(maxsize=4096)
def _contains(outer: Plan, inner: Plan) -> bool:
    return outer.contains(inner)


class StaleMean(Aggregator):
    """The mean of what clients change, of each entry over those that held it, where stale changes count less.

    Clients may have started from different versions of the model. With ``change`` what a client changed of the version
    that it was sent, an entry moves by ``sum of w * change / sum of w`` over its holders, where ``w`` is ``weight *
    (1 + staleness) ** -exponent``, and the staleness is the entry's. Where all have the version that there is now, it
    is the counting mean, bit for bit.

    Parameters
    ----------
    global_state, label_rows
        As in ``Aggregator``, and so are its other options.
    clocks : Clocks
        Which entries earlier steps moved; ``result`` adds this one.
    exponent : float
        How much less stale changes count; 0 for not at all. None counts less than ``LEAST`` of its weight.
    one_clock : bool
        Whether each step counts as one that moved the whole model, as in FedBuff.
    """

    def __init__(
        self,
        global_state: Mapping[str, Tensor],
        label_rows: Sequence[str] = (),
        *,
        clocks: Clocks,
        exponent: float = 0.0,
        one_clock: bool = False,
        **limits: Any,
    ) -> None:
        super().__init__(global_state, label_rows, **limits)
        self._clocks, self._exponent, self._one_clock = clocks, exponent, one_clock
        self._sent: Mapping[str, Tensor] = {}  # to the client whose reply is added
        self._stale: dict[Plan, int] = {}  # of that reply

    def add(
        self,
        plan: Plan,
        sub: Mapping[str, Tensor],
        *,
        labels: Sequence[int] | None = None,
        weight: float = 1.0,
        sent: Version | None = None,
    ) -> None:
        """Add a client's reply to what it was ``sent``, by default the present model; see ``Aggregator.add``."""
        self._sent = sub if sent is None else sent.tensors
        # What is not looked at is not made.
        self._start = self._state if sent is None or not self._limits["norm_bound"] else sent.state
        self._stale = self._clocks.staleness(plan, sent) if sent else {plan: 0}
        super().add(plan, sub, labels=labels, weight=weight)

    def _share(self, stale: int) -> float:
        """Return how much of its weight a change counts."""
        return max(math.pow(1.0 + stale, -self._exponent), LEAST)

    def _entries(self, plan: Plan, name: str, own: Tensor) -> Tensor:
        """Return what a client changed, on top of the present model, times what it counts in each entry."""
        if not any(self._stale.values()):  # the model has not moved where it could have
            return super()._entries(plan, name, own)
        moved = (Region(self._state[name], plan.axes[name]).part() - self._sent[name]).contiguous()
        # In place, as new memory costs more than arithmetic.
        local = moved.to(sum_dtype(moved)).add_(own.to(moved.device))
        around = 1.0
        for inner, stale in self._stale.items():
            if name in inner.axes:
                Region(local, _within(plan.axes[name], inner.axes[name])).scale(self._share(stale) / around)
                around = self._share(stale)
        return local

    def _hold(self, plan: Plan, rows: Tensor | None, weight: float) -> None:
        """Add what a reply counts: of its plan, and of each smaller one what it counts there beyond that."""
        around = 0.0
        for own, stale in self._stale.items():
            super()._hold(own, rows, weight * (self._share(stale) - around))
            around = self._share(stale)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Return the new global state, in new tensors, and end the aggregation; the clocks of what it moved go on."""
        new = super().result()
        whole = Plan({name: tuple(Axis(size, size) for size in own.shape) for name, own in self._state.items()})
        self._clocks.step({whole} if self._one_clock else self._holders)
        return new


@lru_cache(maxsize=4096)
def _within(outer: Axes, inner: Axes) -> Axes:
    """Return the axes by which a slice of the model is one of a larger slice."""
    found = []
    for large, small in zip(outer, inner, strict=True):
        held, places = positions(small), sorted(positions(large))
        index = tuple(number for number, place in enumerate(places) if place in held)
        found.append(Axis(large.kept, small.kept, index=None if index == tuple(range(small.kept)) else index))
    return tuple(found)
