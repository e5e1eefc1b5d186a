"""One client's work in a round, and what an engine is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from heterofl_flwr.data.dataset import Split
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
    """

    model: nn.Module
    split: Split
    seed: int
    classes: Sequence[int] | Tensor | None = None


Engine = Callable[[Sequence[Work], TrainOptions], list[TrainResult]]
"""Trains clients whose models are of one kind and rate, each on its split's device; results in the same order."""
