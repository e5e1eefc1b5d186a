"""Robust means of each entry over the clients that held it: trimmed mean and median.

A minority of a parameter's holders cannot move it far, whatever they send. In HeteroFL this has to hold entry by entry,
as an entry that few clients hold is theirs alone.

- **Three holders or more.** ``trimmed``: the largest and the smallest changes are dropped, and the others averaged
  (Yin et al., 2018). ``median``: the middle change, or the mean of the middle two.
- **One or two holders** can outvote nobody: the entry moves by their plain mean, or keeps its value.

Both need all replies at once, so an aggregator holds them: the memory is the sum of the clients' slices, in single
precision, and a few copies of one parameter of all clients while the result is worked out.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import group
from heterofl_flwr.core.counting_mean import Aggregator, sum_dtype
from heterofl_flwr.core.slice_plan import Plan, Region

RobustMean = Literal["trimmed", "median"]
"""How three holders or more of an entry are combined."""

Few = Literal["mean", "keep"]
"""What becomes of entries that one or two hold: their plain mean, or the old value."""

MANY = 3
"""Holders of which one can be outvoted."""


@group
class Robust:
    """How a minority of hostile clients is kept from moving the model far."""

    mean: RobustMean = "trimmed"
    """How three holders or more of an entry are combined."""
    trim: Annotated[float, Strict(), Field(ge=0, lt=0.5)] = 0.2
    """Share of an entry's holders that trimmed drops at each end, rounded down, but at least one."""
    few: Few = "mean"
    """What becomes of entries that one or two hold."""

    @property
    def fewest(self) -> int:
        """Holders below which an entry keeps its value."""
        return MANY if self.few == "keep" else 1

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
        new = {}
        for name, old in self._state.items():
            stack = self._stack(name)
            change = combine(stack, self._robust).view(old.shape)
            new[name] = (old + change).to(old.dtype) if len(stack) else old.clone()
        self._changes = []
        return new

    def held(self, name: str) -> Tensor:
        """Return how many clients held each entry; 0 where they are so few that it keeps its value."""
        held = super().held(name)
        return held.where(held >= self._robust.fewest, 0.0)

    def _collect(self, plan: Plan, sub: Mapping[str, Tensor], rows: Tensor | None, weight: float) -> None:
        """Keep what a client changed; what does not count of it is NaN."""
        if weight != 1:
            raise ConfigError(f"a robust mean counts each client once; found the weight {weight:g}, expected 1")
        changes = {}
        for name, axes in plan.axes.items():
            old = Region(self._state[name], axes).read()
            change = sub[name].to(old.device, sum_dtype(old)) - old
            if rows is not None and name in self._rows.sizes:
                absent = torch.ones(len(change), dtype=torch.bool)
                absent[rows[rows < self._rows.sizes[name]]] = False
                change[absent.to(change.device)] = math.nan
            changes[name] = change
        self._changes.append((plan, changes))

    def _stack(self, name: str) -> Tensor:
        """Return what the holders of a parameter changed, (holders, entries); NaN where one did not hold an entry."""
        holders = [(plan, changes) for plan, changes in self._changes if name in plan.axes]
        old = self._state[name]
        stack = old.new_full((len(holders), *old.shape), math.nan, dtype=sum_dtype(old))
        for whole, (plan, changes) in zip(stack, holders, strict=True):
            Region(whole, plan.axes[name]).write(changes[name])
        return stack.flatten(1) if old.dim() else stack.unsqueeze(1)


def combine(stack: Tensor, robust: Robust) -> Tensor:
    """Return the robust mean of each column over the rows that are not NaN; 0 where these are too few."""
    counts = (~stack.isnan()).sum(0)
    change = stack.new_zeros(stack.shape[1])
    for number in counts.unique().tolist():
        if number >= robust.fewest:
            held, drop = counts == number, robust.dropped(number)
            ordered = stack[:, held].sort(0).values  # (holders, entries of so many); NaN comes last
            change[held] = ordered[drop : number - drop].mean(0)
    return change
