"""Sampling of clients: how many take part in a round, and which."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Count, Natural, NotNegative, Share, ShareOrNone, group, specs
from heterofl_flwr.core.levels import exact_fraction
from heterofl_flwr.core.randomness import generator

Purpose = Literal["train", "evaluate"]

MinReplies = Count | Annotated[float, Strict(), Field(gt=0, lt=1)] | Literal["auto"]
"""Fewest usable replies of a round: a number, a fraction of the clients needed, or half of them (``auto``)."""


_Fewest = Annotated[Natural | None, "an integer of 0 or more"]


@group
class Sampling:
    """Options of sampling: spare clients, minimum number of replies, and time to wait for nodes."""

    spare: NotNegative = 0.0
    """extra clients to sample, as a fraction of the clients needed. Above 0, a round ends as soon as enough clients
    have replied; runs cannot be repeated exactly then, and engine.window has no effect
    """
    min_replies: Annotated[MinReplies, "'auto', a whole number of 1 or more, or a share between 0 and 1"] = "auto"
    """lower bound on the usable replies of a round; with fewer, the run fails. A number, a fraction of the clients
    needed, or auto: half of the clients needed, without those whose simulated device was away or failed
    """
    wait: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=True)] = 60.0
    """seconds to wait for enough nodes; after that, the run fails"""


@group
class Participation(Sampling):
    """Options of ``Sampling``, and the numbers of clients in a round."""

    fraction_train: Share = Field(default=1.0, alias="fraction")
    """fraction of the clients that train in a round, rounded up. The idle clients of a mix (its part x) do not count"""
    fraction_evaluate: ShareOrNone = Field(default=1.0, exclude=True)
    """fraction of the clients that evaluate, rounded up; 0: no client evaluates, nor measures batch norm moments"""
    min_train_nodes: _Fewest = Field(default=None, exclude=True)
    """lower bound on the number of clients that train; if set, fraction_train rounds down, as in FedAvg"""
    min_evaluate_nodes: _Fewest = Field(default=None, exclude=True)
    """lower bound on the number of clients that evaluate; if set, fraction_evaluate rounds down, as in FedAvg"""
    min_available_nodes: Natural = Field(default=2, alias="min-nodes")
    """number of nodes that each round waits for, up to sample.wait seconds; 'heterofl run' waits for all nodes"""

    @classmethod
    def of(cls, sampling: Sampling, **numbers: Any) -> "Participation":
        """Return an instance with the fields of ``sampling``; ``numbers`` holds values of other fields by name."""
        if not isinstance(sampling, Sampling):
            raise ConfigError(f"sampling is {sampling!r}, expected Sampling(...), or leave it out")
        return cls(**{name: getattr(sampling, name) for name in specs(Sampling)}, **numbers)

    @property
    def available(self) -> int:
        """Number of connected nodes that a round waits for."""
        return max(self.min_available_nodes, self.min_train_nodes or 0, self.min_evaluate_nodes or 0, 1)

    def number(self, clients: int, purpose: Purpose) -> int:
        """Return the number of clients to sample: a fraction of ``clients``, rounded up, and at least 1.

        If the minimum for ``purpose`` is set (``min_train_nodes`` or ``min_evaluate_nodes``), the number is rounded
        down, and is at least this minimum.
        """
        share, least = self.fraction_train, self.min_train_nodes
        if purpose == "evaluate":
            share, least = self.fraction_evaluate, self.min_evaluate_nodes
        if least is not None:
            return max(int(clients * share), least, 1)
        return max(math.ceil(exact_fraction(share) * clients), 1)

    def with_spare(self, number: int) -> int:
        """Return ``number`` plus the number of spare clients."""
        return number + math.ceil(exact_fraction(self.spare) * number)


def draw(ordered: Sequence[int], number: int, *purpose: int | str, seed: int) -> list[int]:
    """Sample ``number`` clients from ``ordered``, or all if there are fewer.

    Sampling is without replacement. The result depends only on the arguments.
    """
    if number >= len(ordered):
        return list(ordered)
    return generator(seed, "sample", *purpose).sample(ordered, number)


def least_replies(least: MinReplies, needed: int) -> int:
    """Return the minimum number of usable replies.

    If ``least`` is an int, return ``least``. If it is a float, return this fraction of ``needed``, rounded up, and at
    least 1. ``auto`` stands for the fraction 0.5.
    """
    if isinstance(least, int):
        return least
    share = exact_fraction(0.5 if least == "auto" else least)
    return max(math.ceil(share * needed), 1)
