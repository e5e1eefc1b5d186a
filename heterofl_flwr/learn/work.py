"""One client's work in a round, and what an engine is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn

from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.learn.options import TrainOptions
from heterofl_flwr.learn.results import TrainResult


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Work:
    """What one client trains.

    Attributes
    ----------
    model
        From a batch of inputs to logits, classes on axis 1; trained in place.
    split
        The client's examples.
    seed
        Made of run, round and partition, for example ``derive(seed, "train", server_round, partition)``.
    classes
        The classes that the client has: the loss is masked to them. None for all.
    share
        The share of its steps after which the client stops, over 0 and up to 1; rounded up to whole steps.
    """

    model: nn.Module
    split: Split
    seed: int
    classes: Sequence[int] | Tensor | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 < self.share <= 1:
            raise ConfigError(f"share is {self.share!r}; expected a number over 0 and up to 1")

    def part_of(self, steps: int) -> int:
        """Return how many of so many steps the client takes."""
        return math.ceil(Fraction(str(self.share)) * steps)


Engine = Callable[[Sequence[Work], TrainOptions], list[TrainResult]]
"""Trains clients whose models are of one kind and rate, each on its split's device; results in the same order."""
