"""Asynchronous training: options, choice of the replies in a step, and server stage."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Natural, NotNegative, group
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.core.staleness import Clocks, StaleMean, largest_first
from heterofl_flwr.stages.server_stage import ServerStage


@group
class Buffered:
    """Options of asynchronous training: the model takes a step as soon as enough clients have replied."""

    size: Natural = 0
    """number of replies that a step averages; steps replace rounds. 0: synchronous rounds"""
    concurrency: Natural = 0
    """number of clients that train at the same time; replaces sample.fraction"""
    staleness: NotNegative = 0.5
    """exponent a: the weight of each entry of a reply is multiplied by 1 / (1 + s)^a, and by 0.001 at least. Here
    s is the entry's staleness: the number of steps since the client received the entry; clocks says which steps count.
    0: full weight for all replies
    """
    bound: Natural = 0
    """staleness above which a reply is dropped; a reply is as stale as its least stale entry. 0: no reply is dropped"""
    clocks: Literal["regions", "model"] = "regions"
    """steps that count for an entry. regions: the steps that changed the entry. model: all steps, as in FedBuff"""
    quota: Natural = 0
    """minimum number of replies from each level in a step, except levels without a client in training. 0: no minimum"""

    def __post_init__(self) -> None:
        if self.concurrency < self.size:
            raise ConfigError(f"concurrency is {self.concurrency}, expected size, {self.size}, or more")
        for name in ("concurrency", "bound", "quota"):
            if not self.size and (value := getattr(self, name)):
                raise ConfigError(f"{name} is {value}, and size is 0 (synchronous rounds); expected a size above 0")


def check_levels(options: Buffered, trained: Sequence[Plan]) -> None:
    """Raise ``ConfigError`` if the options do not fit the levels; ``trained`` has, for each, what its clients train."""
    if (needed := options.quota * len(trained)) > options.size:
        raise ConfigError(
            f"asynchronous: quota is {options.quota}, which for {len(trained)} levels is {needed} replies of a step; "
            f"expected size, {options.size}, or fewer"
        )
    if options.clocks == "regions":
        largest_first(set(trained))


class Slots:
    """The ``size`` slots of a step, one for each reply. For each level, ``quota`` slots are reserved."""

    def __init__(self, size: int, quota: int) -> None:
        self._size, self._quota = size, quota
        self._taken: Counter[float] = Counter()

    @property
    def all_taken(self) -> bool:
        """Whether no slot is free."""
        return self._taken.total() >= self._size

    def has_slot(self, rate: float, pending: Collection[float]) -> bool:
        """Whether a reply of this rate may take a slot.

        A level with fewer than ``quota`` slots may take any free slot. Any other level must leave enough slots free for
        the levels in ``pending`` to reach ``quota``. ``pending`` has the rates of all other replies that may come.
        """
        reserved = sum(max(self._quota - self._taken[level], 0) for level in set(pending))
        if self._taken[rate] < self._quota:  # a reserved slot of this level
            reserved = 0
        return self._taken.total() + reserved < self._size

    def take(self, rate: float) -> None:
        """Take a slot for a reply of this rate."""
        self._taken[rate] += 1


class Asynchronous(ServerStage):
    """Server stage that weights replies by their staleness, and saves the state of asynchronous training."""

    # A checkpoint is written after a step, so no reply of a finished step is lost or counted twice.

    def __init__(self, options: Buffered) -> None:
        self.options = options
        self.load({})

    def open_mean(self, state: Mapping[str, Tensor]) -> StaleMean:
        """Return the aggregator of a step, which gives stale replies lower weights."""
        exponent, one_clock = self.options.staleness, self.options.clocks == "model"
        return StaleMean(state, clocks=self.clocks, exponent=exponent, one_clock=one_clock)

    def state(self) -> Mapping[str, Tensor]:
        """Return the partition ids of the clients in training."""
        return {"training": torch.tensor(self.training, dtype=torch.int64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the clients in training, which start again from the current model. Staleness begins at 0."""
        self.clocks = Clocks()
        self.training: list[int] = state["training"].tolist() if state else []
