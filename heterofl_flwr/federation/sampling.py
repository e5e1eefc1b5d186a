"""Sampling: how many clients take part in a round, which of them are drawn, and how many replies it needs."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Count, Natural, NotNegative, Share, ShareOrNone, group, specs
from heterofl_flwr.core.randomness import generator

Purpose = Literal["train", "evaluate"]

MinReplies = Count | Annotated[float, Strict(), Field(gt=0, lt=1)] | Literal["auto"]
"""Fewest good replies of a round: a number, a fraction of the clients needed, or half of them (``auto``)."""

REPLIES = "a whole number of 1 or more, or a share between 0 and 1"
"""Expected values other than ``auto``, in words."""

_Fewest = Annotated[Natural | None, "an integer of 0 or more"]


@group
class Sampling:
    """Spare clients, and the replies and nodes that a round waits for."""

    spare: NotNegative = 0.0
    """extra clients to sample, as a fraction of those needed; a round ends as soon as enough have answered, so which of
    them count is no longer the same in each run, and engine.window does not hold
    """
    min_replies: Annotated[MinReplies, f"'auto', {REPLIES}"] = "auto"
    """good replies below which a round, and with it the run, fails: a number, a fraction of the clients needed, or half
    of them (auto)
    """
    wait: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=True)] = 60.0
    """seconds to wait for enough nodes before the run fails"""


@group
class Participation(Sampling):
    """Number of clients that take part in a round, and how long a round waits for them."""

    fraction_train: Share = Field(default=1.0, alias="fraction")
    """fraction of the clients that train in a round, rounded up"""
    fraction_evaluate: ShareOrNone = Field(default=1.0, exclude=True)
    """fraction of the clients that evaluate, rounded up; 0: none is asked, nor for what an evaluation needs"""
    min_train_nodes: _Fewest = Field(default=None, exclude=True)
    """lower bound on the clients that train; the fraction is then rounded down, as in FedAvg"""
    min_evaluate_nodes: _Fewest = Field(default=None, exclude=True)
    """lower bound on the clients that evaluate; the fraction is then rounded down, as in FedAvg"""
    min_available_nodes: Natural = Field(default=2, alias="min-nodes")
    """nodes that each round waits for, sample.wait seconds at most; 'heterofl run' waits for all"""

    @classmethod
    def of(cls, sampling: Sampling, **numbers: Any) -> "Participation":
        """Return the options of a sampling with the numbers of clients."""
        if not isinstance(sampling, Sampling):
            raise ConfigError(f"sampling is {sampling!r}, expected Sampling(...), or leave it out")
        return cls(**{name: getattr(sampling, name) for name in specs(Sampling)}, **numbers)

    @property
    def available(self) -> int:
        """Number of nodes that a round waits for."""
        return max(self.min_available_nodes, self.min_train_nodes or 0, self.min_evaluate_nodes or 0, 1)

    def number(self, clients: int, purpose: Purpose) -> int:
        """Return the number of clients to sample: a fraction, rounded up, or down if a minimum is set."""
        share, least = self.fraction_train, self.min_train_nodes
        if purpose == "evaluate":
            share, least = self.fraction_evaluate, self.min_evaluate_nodes
        if least is not None:
            return max(int(clients * share), least, 1)
        return max(math.ceil(Fraction(str(share)) * clients), 1)

    def with_spare(self, number: int) -> int:
        """Return the number of clients to train where ``number`` are needed, with the spare ones."""
        return number + math.ceil(Fraction(str(self.spare)) * number)


def least_replies(least: MinReplies, needed: int) -> int:
    """Return the fewest good replies of a round that needs ``needed`` clients."""
    if isinstance(least, int):
        return least
    share = Fraction(1, 2) if least == "auto" else Fraction(str(least))
    return max(math.ceil(share * needed), 1)


def draw(ordered: Sequence[int], number: int, *purpose: int | str, seed: int) -> list[int]:
    """Draw clients without replacement; ``ordered`` must be repeatable, as it decides who is drawn."""
    if number >= len(ordered):
        return list(ordered)
    return generator(seed, "sample", *purpose).sample(ordered, number)
