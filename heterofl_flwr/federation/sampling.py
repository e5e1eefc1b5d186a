"""Sampling: how many clients take part in a round, which of them are drawn, and how many replies it needs."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, Strict

from heterofl_flwr.common.options import Count, Natural, NotNegative, Share, ShareOrNone, group
from heterofl_flwr.core.randomness import generator

Purpose = Literal["train", "evaluate"]

MinReplies = Count | Annotated[float, Strict(), Field(gt=0, lt=1)] | Literal["auto"]
"""How many good replies a round needs: a number, a share of the clients that are needed, or half of them."""

REPLIES = "a whole number of 1 or more, or a share between 0 and 1"
"""What is expected beside ``auto``."""

_Fewest = Annotated[Natural | None, "an integer of 0 or more"]


@group
class Sampling:
    """Which clients take part in a round, and how long a round waits for them."""

    fraction_train: Share = Field(default=1.0, alias="fraction")
    """share of the clients that train in a round, rounded up"""
    fraction_evaluate: ShareOrNone = Field(default=1.0, exclude=True)
    min_train_nodes: _Fewest = Field(default=None, exclude=True)
    min_evaluate_nodes: _Fewest = Field(default=None, exclude=True)
    min_available_nodes: Natural = Field(default=2, alias="min-nodes")
    """nodes that each round waits for, sample.wait seconds at most; 'heterofl run' waits for all"""
    spare: NotNegative = 0.0
    """share of clients that are asked to train beyond those that are needed; a round ends as soon as enough have
    answered, so which of them count is no longer the same in each run, and engine.window does not hold
    """
    min_replies: Annotated[MinReplies, f"'auto', {REPLIES}"] = "auto"
    """good replies below which a round, and with it the run, fails: a number, a share of the clients that it needs, or
    half of them (auto)
    """
    wait: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=True)] = 60.0
    """seconds to wait for sample.min-nodes before the run fails"""

    @property
    def available(self) -> int:
        """How many nodes a round waits for."""
        return max(self.min_available_nodes, self.min_train_nodes or 0, self.min_evaluate_nodes or 0, 1)

    def number(self, clients: int, purpose: Purpose) -> int:
        """Return how many of some clients take part, rounded up; with a least number rounded down, as in ``FedAvg``."""
        share, least = self.fraction_train, self.min_train_nodes
        if purpose == "evaluate":
            share, least = self.fraction_evaluate, self.min_evaluate_nodes
        if least is not None:
            return max(int(clients * share), least, 1)
        return max(math.ceil(Fraction(str(share)) * clients), 1)

    def with_spare(self, number: int) -> int:
        """Return how many clients are asked to train where this many are needed."""
        return number + math.ceil(Fraction(str(self.spare)) * number)


def least_replies(least: MinReplies, needed: int) -> int:
    """Return how many good replies a round needs, of which this many would be all."""
    if isinstance(least, int):
        return least
    share = Fraction(1, 2) if least == "auto" else Fraction(str(least))
    return max(math.ceil(share * needed), 1)


def draw(ordered: Sequence[int], number: int, *purpose: int | str, seed: int) -> list[int]:
    """Draw clients without replacement; ``ordered`` must be repeatable, as it decides who is drawn."""
    if number >= len(ordered):
        return list(ordered)
    return generator(seed, "sample", *purpose).sample(ordered, number)
