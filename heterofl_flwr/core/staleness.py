"""Asynchronous aggregation: how stale a reply is in each entry, and the mean of replies to different versions."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.core.axes import Axes, Axis
from heterofl_flwr.core.counting_mean import Aggregator, held_by
from heterofl_flwr.core.plan import Plan, Region
from heterofl_flwr.core.reply_checks import check_reply
from heterofl_flwr.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """The global model that a client was sent, and how many steps it had taken by then."""

    number: int
    state: Mapping[str, Tensor]


class Clocks:
    """Which entries each step of the global model moved.

    Entries that the clients of the same levels hold form a region, and the clock of a region counts the steps that
    moved it. A reply's staleness in a region is that clock now, less what it was when the client was sent its slice.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._steps: list[Mapping[str, Axes]] = []  # of each, the slice of each parameter that it moved

    @property
    def version(self) -> int:
        """How many steps the model has taken."""
        return self._first + len(self._steps)

    def step(self, plans: Iterable[Plan]) -> None:
        """Note a step that moved the entries of these plans, of which each must lie within the next larger one."""
        slices: dict[str, set[Axes]] = {}
        for plan in plans:
            for name, axes in plan.axes.items():
                slices.setdefault(name, set()).add(axes)
        self._steps.append({name: _largest(name, own) for name, own in slices.items()})

    def least_staleness(self, plan: Plan, version: int) -> int:
        """Return how stale a reply to a version is where it is least so."""
        return min((self._split(name, axes, version)[0] for name, axes in plan.axes.items()), default=0)

    def staleness(self, name: str, axes: Axes, version: int) -> Tensor:
        """Return how stale a reply to a version is in each entry of a parameter; one number where it is everywhere."""
        everywhere, inside = self._split(name, axes, version)
        if not inside:
            return torch.tensor(float(everywhere))
        counts = held_by(torch.empty([axis.full for axis in axes]), inside)
        return Region(counts, axes).read().add_(everywhere)

    def _split(self, name: str, axes: Axes, version: int) -> tuple[int, dict[Axes, float]]:
        """Return how many steps since a version moved all of a slice, and of others how many moved which part of it."""
        moved = Counter(step[name] for step in self._steps[version - self._first :] if name in step)
        everywhere = sum(number for own, number in moved.items() if _contains(own, axes))
        return everywhere, {own: float(number) for own, number in moved.items() if not _contains(own, axes)}


@lru_cache(maxsize=4096)
def _contains(outer: Axes, inner: Axes) -> bool:
    return all(large.contains(small) for large, small in zip(outer, inner, strict=True))


def _largest(name: str, slices: Iterable[Axes]) -> Axes:
    """Return the slice that contains the others."""
    ordered = sorted(slices, key=lambda axes: prod(axis.kept for axis in axes), reverse=True)
    if not all(_contains(ordered[0], other) for other in ordered):
        raise ConfigError(
            f"asynchronous: levels hold other parts of {name}, of which none is inside the other; expected each level "
            f"to hold a part of what the next larger one holds"
        )
    return ordered[0]


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
        How much less stale changes count; 0 for not at all.
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
        self._weights: dict[str, Tensor] = {}  # of each entry, the sum of w
        self._plans: set[Plan] = set()

    @torch.no_grad()
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
        self._check_open()
        sent = sent or Version(self._clocks.version, self._state)
        check_reply(sent.state, plan, sub, weight, **self._limits)
        rows = self._rows.held(plan, labels)
        for name, axes in plan.axes.items():
            size = self._rows.sizes.get(name)
            own = None if rows is None or size is None else rows[rows < size]
            staleness = self._clocks.staleness(name, axes, sent.number).to(sub[name].device)
            share = staleness.add_(1).pow_(-self._exponent)  # in place, as new memory costs more than arithmetic
            local = self._on_present(name, axes, sub[name], sent)
            _add(Region(self._sum(self._sums, name), axes), local * share, own, float(weight))
            _add(Region(self._sum(self._weights, name), axes), share.expand(local.shape), own, float(weight))
        self._plans.add(plan)
        self.replies += 1

    def _on_present(self, name: str, axes: Axes, local: Tensor, sent: Version) -> Tensor:
        """Return what the client changed, on top of the present model; where that did not move, what it sent."""
        if sent.number == self._clocks.version:
            return local
        return Region(self._state[name], axes).read().sub_(Region(sent.state[name], axes).part()).add_(local)

    def _sum(self, sums: dict[str, Tensor], name: str) -> Tensor:
        if name not in sums:
            old = self._state[name]
            sums[name] = torch.zeros_like(old, dtype=torch.promote_types(old.dtype, torch.float32))
        return sums[name]

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Return the new global state, in new tensors, and end the aggregation; the clocks of what it moved go on."""
        self._close()
        new = {}
        for name, old in self._state.items():
            total = self._sums.pop(name, None)
            if total is not None:
                weights = self._weights[name]
                torch.where(weights > 0, total.div_(weights), old, out=total)
            new[name] = old.clone() if total is None else total.to(old.dtype)
        whole = Plan({name: tuple(Axis(size, size) for size in own.shape) for name, own in self._state.items()})
        self._clocks.step({whole} if self._one_clock else self._plans)
        return new

    @torch.no_grad()
    def held(self, name: str) -> Tensor:
        """Return the sum of the weights of those that held each entry."""
        return self._sum(self._weights, name)


def _add(region: Region, local: Tensor, rows: Tensor | None, weight: float) -> None:
    """Add to a region, or to some rows of it."""
    if rows is None:
        region.add(local.contiguous(), weight)
    else:
        region.add_rows(local.contiguous(), rows, weight)
