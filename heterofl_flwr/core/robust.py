"""Robust means of each entry over the clients that held it: trimmed mean, median, and clipping.

A minority of a parameter's holders cannot move it far, whatever they send. In HeteroFL this has to hold entry by entry,
as an entry that few clients hold is theirs alone.

- **Three holders or more.** ``trimmed``: the largest and the smallest changes are dropped, and the others averaged
  (Yin et al., 2018). ``median``: the middle change, or the mean of the middle two. ``clip``: changes are compared where
  as many clients hold a parameter, and those longer than the median are shortened to it.
- **One or two holders** can outvote nobody. Their changes count as those of FLTrust's clients (Cao et al., 2021), with
  what three or more agree on in the place of the server's own training. Each is shortened to the root mean square of
  the parameter's other changes, or where there are none, of all changes of what its client shares with two others or
  more; and then multiplied by the cosine of that client's changes and theirs, or by 0 where it is negative.

Every method needs all replies at once, so an aggregator holds them: the memory is the sum of the clients' slices, in
single precision, and a few copies of one parameter of all clients while the result is worked out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from heterofl_flwr.core.counting_mean import Aggregator
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.regions import Region
from heterofl_flwr.errors import ConfigError, check_fields

RobustMean = Literal["trimmed", "median", "clip"]
"""How three holders or more of an entry are combined."""

Few = Literal["shorter", "keep"]
"""What becomes of entries that one or two hold: a shorter step, or the old value."""

MANY = 3
"""Holders of which one can be outvoted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Robust:
    """How a minority of hostile clients is kept from moving the model far.

    Attributes
    ----------
    mean
        How three holders or more of an entry are combined.
    trim
        Share of an entry's holders that ``trimmed`` drops at each end, rounded down, but at least one.
    few
        What becomes of entries that one or two hold.
    """

    mean: RobustMean = "trimmed"
    trim: float = 0.2
    few: Few = "shorter"

    def __post_init__(self) -> None:
        """Validate the options."""
        check_fields(
            self,
            (
                ("mean", self.mean in get_args(RobustMean), f"one of {', '.join(get_args(RobustMean))}"),
                ("trim", 0 <= self.trim < 0.5, "a share from 0 to below 0.5"),
                ("few", self.few in get_args(Few), f"one of {', '.join(get_args(Few))}"),
            ),
            "robust: ",
        )

    def dropped(self, holders: int) -> int:
        """Return how many of an entry's holders are dropped at each end."""
        most = (holders - 1) // 2
        return most if self.mean == "median" else min(max(math.floor(Fraction(str(self.trim)) * holders), 1), most)


class RobustAggregator(Aggregator):
    """An ``Aggregator`` whose mean of each entry a minority of its holders cannot move far.

    Parameters
    ----------
    global_state, label_rows, **checks
        Those of ``Aggregator``.
    robust : Robust
        How replies are combined. Each counts once.
    """

    def __init__(
        self, global_state: Mapping[str, Tensor], label_rows: Sequence[str] = (), *, robust: Robust, **checks: Any
    ) -> None:
        super().__init__(global_state, label_rows, **checks)
        self._robust = robust
        self._changes: list[tuple[Plan, Mapping[str, Tensor]]] = []

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Return the new global state and end the aggregation."""
        self._close()
        changes: dict[str, Tensor] = {}
        sums = torch.zeros(4, len(self._changes), dtype=torch.float64)
        for name in self._state:
            holders, stack = self._stack(name)
            if holders:
                changes[name] = combine(stack, self._robust)  # (entries,)
                sums[:, holders] += _compare(stack, changes[name]).cpu()
        if self._robust.few == "shorter":
            products, own, theirs, entries = sums  # each (replies,)
            # The cosine of each reply and what many agree on, and the length of that; 0 where they do not meet.
            shares = (products / (own * theirs).sqrt()).nan_to_num(0.0).clamp(0, 1)
            lengths = (theirs / entries.clamp(min=1)).sqrt()
            for name, change in changes.items():
                holders, stack = self._stack(name)
                add_few(change, stack, shares[holders], lengths[holders])
        self._changes = []
        return {
            name: (old + changes.pop(name).view(old.shape)).to(old.dtype) if name in changes else old.clone()
            for name, old in self._state.items()
        }

    def held(self, name: str) -> Tensor:
        """Return how many clients held each entry; 0 where they are so few that it keeps its value."""
        held = super().held(name)
        return held if self._robust.few == "shorter" else held.where(held >= MANY, 0.0)

    def _collect(self, plan: Plan, sub: Mapping[str, Tensor], rows: Tensor | None, weight: float) -> None:
        """Keep what a client changed; what does not count of it is NaN."""
        if weight != 1:
            raise ConfigError(f"a robust mean counts each client once; found the weight {weight:g}, expected 1")
        changes = {}
        for name, axes in plan.axes.items():
            old = Region(self._state[name], axes).read()
            change = sub[name].to(old.device, _wide(old)) - old
            if rows is not None and name in self._rows.sizes:
                absent = torch.ones(len(change), dtype=torch.bool)
                absent[rows[rows < self._rows.sizes[name]]] = False
                change[absent.to(change.device)] = math.nan
            changes[name] = change
        self._changes.append((plan, changes))

    def _stack(self, name: str) -> tuple[list[int], Tensor]:
        """Return who held a parameter, and what they changed; NaN where one did not hold an entry."""
        holders = [number for number, (plan, _) in enumerate(self._changes) if name in plan.axes]
        old = self._state[name]
        stack = old.new_full((len(holders), *old.shape), math.nan, dtype=_wide(old))
        for whole, number in zip(stack, holders, strict=True):
            plan, changes = self._changes[number]
            Region(whole, plan.axes[name]).write(changes[name])
        return holders, stack.flatten(1) if old.dim() else stack.unsqueeze(1)


def combine(stack: Tensor, robust: Robust) -> Tensor:
    """Return the robust mean of each column over the rows that are not NaN; 0 where these are fewer than ``MANY``."""
    counts = (~stack.isnan()).sum(0)
    change = stack.new_zeros(stack.shape[1])
    for number in counts.unique().tolist():
        if number < MANY:
            continue
        held = counts == number
        part = stack[:, held]  # (holders, entries of so many)
        if robust.mean == "clip":
            # Changes that are longer than the median are shortened to it.
            lengths = _root_mean_square(part)
            scales = (lengths.nanmedian() / lengths).nan_to_num(1.0).clamp(max=1)
            change[held] = (part * scales.to(part).unsqueeze(1)).nanmean(0)
        else:
            drop = robust.dropped(number)
            change[held] = part.sort(0).values[drop : number - drop].mean(0)  # NaN comes last
    return change


def add_few(change: Tensor, stack: Tensor, shares: Tensor, lengths: Tensor) -> None:
    """Add to a parameter's change, in place, the entries that one or two clients hold.

    ``change`` is what ``combine`` returned, ``stack`` what the holders changed, ``shares`` the agreement of each with
    the others (0 to 1), and ``lengths`` the step of each where nothing of the parameter is held by many.
    """
    counts = (~stack.isnan()).sum(0)
    few = (counts > 0) & (counts < MANY)
    part = stack[:, few]
    if counts.numel() and counts.max() >= MANY:
        lengths = _root_mean_square(change[counts >= MANY].unsqueeze(0))
    own = _root_mean_square(part)
    scales = shares.to(own) * (lengths.to(own) / own).nan_to_num(0.0).clamp(max=1)
    change[few] = (part * scales.to(part).unsqueeze(1)).nansum(0) / counts[few]


def _compare(stack: Tensor, change: Tensor) -> Tensor:
    """Return, of the entries that many hold, each holder's inner product with the change, both squares, and a count."""
    held = ~stack.isnan()
    many = held.sum(0) >= MANY
    held, own, theirs = held[:, many], stack[:, many].double().nan_to_num(0.0), change[many].double()
    return torch.stack([own @ theirs, own.square().sum(1), held.double() @ theirs.square(), held.sum(1).double()])


def _root_mean_square(part: Tensor) -> Tensor:
    """Return the root mean square of each row's entries that are not NaN; NaN where there are none."""
    found: Tensor = part.double().square().nanmean(1).sqrt()
    return found


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
