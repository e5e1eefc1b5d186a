"""Robust aggregation: the trimmed mean or the median of clients' changes, for each entry.

The holders of an entry are the clients whose slices contain it. An entry with three holders or more changes by the
trimmed mean or the median of its holders' changes. ``trimmed`` drops the largest and the smallest changes (Yin et al.,
2018). With one or two holders, no majority can outvote a false change: the option ``few`` chooses between the holders'
plain mean and the old value. The changes of all clients are stored until the end of the round.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, Strict
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import group, specs
from heterofl_flwr.core.aggregator import CheckedReply
from heterofl_flwr.core.counting_mean import Holders
from heterofl_flwr.core.exchanged import exchanged_dtype
from heterofl_flwr.core.levels import exact_fraction
from heterofl_flwr.core.slice_plan import Plan, Region

RobustKind = Literal["trimmed", "median"]
"""Robust mean of an entry with three holders or more."""

Few = Literal["mean", "keep"]
"""New value of an entry with one or two holders: the holders' plain mean, or the old value."""

MANY = 3
"""Smallest number of holders in which a majority can outvote one holder."""


@group
class Robust:
    """Options of a robust mean."""

    mean: RobustKind = "trimmed"
    """Robust mean of an entry with three holders or more."""
    trim: Annotated[float, Strict(), Field(ge=0, lt=0.5)] = 0.2
    """Fraction of an entry's changes that the trimmed mean drops at each end. The number of dropped changes is rounded
    down, but at least 1 with three holders or more.
    """
    few: Few = "mean"
    """New value of an entry with one or two holders: the holders' plain mean (mean), or the old value (keep)."""

    def __post_init__(self) -> None:
        if self.mean == "median" and self.trim != specs(type(self))["trim"].default:
            raise ConfigError(f"trim is {self.trim}, which a median does not use; expected mean='trimmed' with it")

    @property
    def fewest(self) -> int:
        """Minimum number of holders for an entry to change."""
        return MANY if self.few == "keep" else 1

    def dropped(self, holders: int) -> int:
        """Return the number of changes to drop at each end of the sorted changes of ``holders`` clients."""
        most = (holders - 1) // 2
        return most if self.mean == "median" else min(max(math.floor(exact_fraction(self.trim) * holders), 1), most)


class RobustMean:
    """Aggregator that computes a robust mean for each entry. All clients have equal weight.

    Parameters
    ----------
    state : Mapping[str, Tensor]
        The global state.
    robust : Robust
        Kind of mean and its options.
    """

    def __init__(self, state: Mapping[str, Tensor], *, robust: Robust) -> None:
        self._state, self._robust = state, robust
        self._holders = Holders(state)
        self._changes: list[tuple[Plan, Mapping[str, Tensor]]] = []

    @torch.no_grad()
    def add(self, reply: CheckedReply) -> None:
        """Store a client's change of its slice."""
        if reply.weight != 1:
            raise ConfigError(f"a robust mean counts each client once; found the weight {reply.weight:g}, expected 1")
        changes = {}
        for name, axes in reply.plan.axes.items():
            old = Region(self._state[name], axes).read()
            change = reply.tensors[name].to(old.device, exchanged_dtype(old)) - old
            if name in reply.rows:
                is_absent = torch.ones(len(change), dtype=torch.bool)
                is_absent[reply.rows[name]] = False
                change[is_absent.to(change.device)] = math.nan
            changes[name] = change
        self._changes.append((reply.plan, changes))
        self._holders.add(reply.plan, reply.rows, reply.weight)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Return the new global state; call this once."""
        new = {}
        for name, old in self._state.items():
            stack = self._stack(name)
            change = combine(stack, self._robust).view(old.shape)
            new[name] = (old + change).to(old.dtype) if len(stack) else old.clone()
        self._changes = []
        return new

    def holders(self, name: str) -> Tensor:
        """Return the number of holders of each entry; 0 for entries with fewer than ``Robust.fewest`` holders."""
        holders = self._holders.holders(name)
        return holders.where(holders >= self._robust.fewest, 0.0)

    def _stack(self, name: str) -> Tensor:
        """Return the changes of a parameter, as a tensor of shape (clients, entries).

        Clients whose slices lack the parameter are left out. Entries outside a client's slice or its ``rows`` are NaN.
        """
        holders = [(plan, changes) for plan, changes in self._changes if name in plan.axes]
        old = self._state[name]
        stack = old.new_full((len(holders), *old.shape), math.nan, dtype=exchanged_dtype(old))
        for row, (plan, changes) in zip(stack, holders, strict=True):
            Region(row, plan.axes[name]).write(changes[name])
        return stack.flatten(1) if old.dim() else stack.unsqueeze(1)


def combine(stack: Tensor, robust: Robust) -> Tensor:
    """Return the robust mean of each column, ignoring NaN; 0 for columns with fewer than ``robust.fewest`` values."""
    counts = (~stack.isnan()).sum(0)
    change = stack.new_zeros(stack.shape[1])
    for number in counts.unique().tolist():
        if number >= robust.fewest:
            columns, drop = counts == number, robust.dropped(number)
            ordered = stack[:, columns].sort(0).values  # (holders, columns); NaN is sorted to the end
            change[columns] = ordered[drop : number - drop].mean(0)
    return change
