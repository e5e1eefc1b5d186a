"""The ``Aggregator`` protocol, and the checked replies that an aggregator receives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from heterofl_flwr.core.slice_plan import Plan, Region

Rows = Mapping[str, Tensor]
"""Indices of the rows to average, by parameter. A parameter without indices is averaged in all its rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """The slice that was sent to a client, and the global model's number of steps at that time.

    Only the slice is stored, so that an asynchronous server does not keep a full model for each step.

    Attributes
    ----------
    number
        Number of steps of the global model.
    plan, tensors
        The slice: its entries and their values.
    moved
        For each plan, the number of steps in which it was the largest plan (``Clocks``).
    """

    number: int
    plan: Plan
    tensors: Mapping[str, Tensor]
    moved: Mapping[Plan, int]

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The slice as tensors of the global model's shapes, with zeros in all other entries."""
        state = {}
        for name, axes in self.plan.axes.items():
            state[name] = self.tensors[name].new_zeros([axis.size for axis in axes])
            Region(state[name], axes).write(self.tensors[name])
        return state


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedReply:
    """A client's reply that has passed the checks.

    Attributes
    ----------
    plan
        The slice that the client holds.
    tensors
        The client's parameters, in the shapes of the plan and the dtypes of the global state.
    rows
        The rows to average; see ``Rows``.
    weight
        The client's weight in the mean.
    sent
        The version of the global model that the client trained; None for the current one.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]
    rows: Rows = field(default_factory=dict)
    weight: float = 1.0
    sent: Version | None = None


class Aggregator(Protocol):
    """Combination of the replies of a round: call ``add`` for each reply, then ``result`` once.

    A new aggregator is made from the global state in each round, and never changes that state. A class sets ``by_entry
    = False`` if an entry of the result depends on other entries of the replies. Server optimisers cannot be used with
    such a class.
    """

    def add(self, reply: CheckedReply) -> None:
        """Add a reply."""

    def result(self) -> dict[str, Tensor]:
        """Return the new global state in new tensors; entries that no client held are unchanged."""

    def holders(self, name: str) -> Tensor:
        """Return, for each entry of a parameter, the total weight of its holders. May be called after ``result``."""


OpenAggregator = Callable[[Mapping[str, Tensor]], Aggregator]
"""Function from the global state to the aggregator of a round."""
