"""Rounds that do not wait: the options, who has a seat in a step, and what lasts from step to step."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Natural, NotNegative, group
from heterofl_flwr.core.staleness import Clocks, StaleMean
from heterofl_flwr.stages.server_stage import ServerStage


@group
class Buffered:
    """Asynchronous aggregation: the model takes a step when enough clients have answered, and waits for no one."""

    size: Natural = 0
    """replies of a step, which takes the place of a round; 0: synchronous rounds"""
    concurrency: Natural = 0
    """clients that train at any time, in place of sample.fraction"""
    staleness: NotNegative = 0.5
    """exponent a of a reply's weight 1 / (1 + s)^a, where s is how many steps have moved an entry since the client was
    sent it; 0: stale replies count as others
    """
    bound: Natural = 0
    """a reply is dropped where even the entry that is least stale is staler than this; 0: never"""
    clocks: Literal["regions", "model"] = "regions"
    """what a step makes stale: the entries that it moved (regions), or the whole model (model), as in FedBuff"""
    quota: Natural = 0
    """replies of a step that are kept for each level of which clients train"""

    def __post_init__(self) -> None:
        if self.concurrency < self.size:
            raise ConfigError(f"concurrency is {self.concurrency}, expected size, {self.size}, or more")


class Seats:
    """The replies of one step: ``size`` of them, of which each level that trains keeps ``quota`` for itself."""

    def __init__(self, size: int, quota: int = 0) -> None:
        self._size, self._quota = size, quota
        self._taken: Counter[float] = Counter()

    @property
    def full(self) -> bool:
        """Whether none is left."""
        return self._taken.total() >= self._size

    def has_seat(self, rate: float, others: Collection[float]) -> bool:
        """Whether one is left for a reply of a rate, where ``others`` are those of clients that come later."""
        kept = sum(max(self._quota - self._taken[other], 0) for other in set(others) - {rate})
        own = 0 if self._taken[rate] < self._quota else kept  # nobody waits for its own
        return self._taken.total() + own < self._size

    def take(self, rate: float) -> None:
        """Take a seat."""
        self._taken[rate] += 1


class Asynchronous(ServerStage):
    """What steps of the model keep from one to the next: the clocks, and the partitions of the clients that train.

    A run that goes on asks these clients again, with the model that there is then. No reply that was in a step is lost
    or counts twice, as their state is that of the last step.
    """

    def __init__(self, options: Buffered) -> None:
        self.options = options
        self.load({})

    def open_mean(self, state: Mapping[str, Tensor]) -> StaleMean:
        """Return the aggregator of a step."""
        exponent, one_clock = self.options.staleness, self.options.clocks == "model"
        return StaleMean(state, clocks=self.clocks, exponent=exponent, one_clock=one_clock)

    def state(self) -> Mapping[str, Tensor]:
        """Return how many steps there were, and who trains."""
        return {
            "version": torch.tensor(self.clocks.version),
            "training": torch.tensor(self.training, dtype=torch.int64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on after a step; all who trained then begin anew, so nothing from before it is needed."""
        self.clocks = Clocks(int(state["version"]) if state else 0)
        self.training: list[int] = state["training"].tolist() if state else []
