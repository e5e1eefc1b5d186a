"""The ``Aggregator`` protocol, and the replies that an aggregator receives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from heterofl_flwr.core.slice_plan import Plan, Region

Rows = Mapping[str, Tensor]
"""Indices of the rows to average, by parameter. A parameter without indices is averaged in all its rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """Slice of the global model that was sent to a client.

    Attributes
    ----------
    number
        Number of steps that the global model had made when the slice was sent.
    plan, tensors
        The slice, and its values.
    moved
        By plan, the number of these steps in which this plan was the largest among the plans of the replies.
    """

    number: int
    plan: Plan
    tensors: Mapping[str, Tensor]
    moved: Mapping[Plan, int]

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The sent parameters in their full shapes, with zeros outside the slice."""
        state = {}
        for name, axes in self.plan.axes.items():
            state[name] = self.tensors[name].new_zeros([axis.size for axis in axes])
            Region(state[name], axes).write(self.tensors[name])
        return state


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedReply:
    """A client's reply that has passed all checks.

    Attributes
    ----------
    plan
        The slice that the client holds.
    tensors
        The client's parameters, in the shapes of the plan and the dtypes of the global state.
    rows
        Indices of the rows to average, by parameter. All other parameters are averaged in all rows.
    weight
        The client's weight in the mean.
    sent
        The version of the global model that the client received; None for the current one.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]
    rows: Rows = field(default_factory=dict)
    weight: float = 1.0
    sent: Version | None = None


class Aggregator(Protocol):
    """Protocol of a mean of replies. Call ``add`` for each reply of a round, and then ``result`` once.

    Each round makes a new aggregator from the global state. The aggregator must not change the tensors of this
    state. Set ``by_entry = False`` in a class of aggregators if one entry of the result can depend on other
    entries. Server optimisers reject such classes.
    """

    def add(self, reply: CheckedReply) -> None:
        """Add a client's reply."""

    def result(self) -> dict[str, Tensor]:
        """Return the new global state in new tensors. Entries that no client held are unchanged."""

    def holders(self, name: str) -> Tensor:
        """Return the total weight of the clients that hold each entry of a parameter.

        It can also be called after ``result``.
        """


OpenAggregator = Callable[[Mapping[str, Tensor]], Aggregator]
"""Function from the global state to the aggregator of a round."""
