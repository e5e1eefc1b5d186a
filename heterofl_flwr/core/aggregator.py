"""The protocol of aggregators, and the replies that they receive."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from heterofl_flwr.core.slice_plan import Plan, Region

Rows = Mapping[str, Tensor]
"""Indices of the rows that count, by parameter. Parameters that are missing count with all their rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """The slice that a client was sent, and the steps of the global model until then.

    Only the slice is stored, so that an asynchronous server keeps no whole model for each step.

    Attributes
    ----------
    number
        Steps of the global model.
    plan, tensors
        The slice.
    moved
        Steps that moved the entries of each plan.
    """

    number: int
    plan: Plan
    tensors: Mapping[str, Tensor]
    moved: Mapping[Plan, int]

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The slice in the shapes of the global model, with zeros elsewhere."""
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
        Its parameters, in the shapes of the plan and the dtypes of the global state.
    rows
        The rows that count; see ``Rows``.
    weight
        The client's weight in the mean.
    sent
        The version that the client trained; None for the current one.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]
    rows: Rows = field(default_factory=dict)
    weight: float = 1.0
    sent: Version | None = None


class Aggregator(Protocol):
    """Combination of the replies of a round: ``add`` each one, then call ``result`` once.

    An aggregator is made in each round from the global state, which it never changes. A class attribute ``by_entry``
    that is False says that an entry of the result does not come from that entry of the replies alone, so that no server
    optimiser can step along it.
    """

    def add(self, reply: CheckedReply) -> None:
        """Add a reply."""

    def result(self) -> dict[str, Tensor]:
        """Return the new global state in new tensors; entries that no client held are unchanged."""

    def holders(self, name: str) -> Tensor:
        """Return the total weight of the clients that held each entry of a parameter; also after ``result``."""


OpenAggregator = Callable[[Mapping[str, Tensor]], Aggregator]
"""Makes the aggregator of a round from the global state."""
