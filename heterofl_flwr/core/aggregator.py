"""The ``Aggregator`` protocol, and the replies that an aggregator receives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from heterofl_flwr.core.slice_plan import Plan, Region

Rows = Mapping[str, Tensor]
"""Indices along dimension 0 to average, by parameter name. Parameters that are missing here are averaged in full."""


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """Slice of the global model as it was sent to a client.

    Attributes
    ----------
    number
        Number of steps (server updates) of the global model before the slice was sent.
    plan, tensors
        The slice, and its values.
    moved
        The counters of ``Clocks`` when the slice was sent: for each plan, the number of steps so far in which this plan
        was the largest among the averaged replies.
    """

    number: int
    plan: Plan
    tensors: Mapping[str, Tensor]
    moved: Mapping[Plan, int]

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The sent parameters in the global model's shapes, with zeros outside the slice."""
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
        Indices along dimension 0 to average, by parameter name. Parameters that are missing here are averaged in full.
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
    """Protocol for averaging the replies of a round: call ``add`` for each reply, then ``result`` once.

    In each round, a new aggregator is made from the global state. The aggregator must not change the tensors of this
    state. Set ``by_entry = False`` in a class if an entry of its result depends on other entries of the replies.
    Strategies with a server optimiser, a moving average of models or slices that move then reject the class.
    """

    def add(self, reply: CheckedReply) -> None:
        """Add a client's reply."""

    def result(self) -> dict[str, Tensor]:
        """Return the new global state in new tensors. Entries that no client held are unchanged."""

    def holders(self, name: str) -> Tensor:
        """Return, for each entry of the parameter ``name``, the total weight of the clients that hold the entry.

        The tensor has the parameter's shape. If a reply has ``rows`` for the parameter, the client's weight is added
        only in these rows. This method can also be called after ``result``.
        """


OpenAggregator = Callable[[Mapping[str, Tensor]], Aggregator]
"""Function that makes a round's aggregator from the global state."""
