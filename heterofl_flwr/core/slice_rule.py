"""Which entries of an axis a smaller model keeps.

A slice function sees the length of one part of an axis and how much of it is kept, and nothing else. Coupled axes, such
as those of a residual stream, have equal lengths, so every slice function keeps them aligned.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from heterofl_flwr.core.randomness import generator

SliceFunction = Callable[[int, int], Sequence[int] | None]
"""From (full, kept) to the kept positions, ascending; ``None`` stands for the first ``kept``."""

SliceRule = Literal["prefix", "rolling", "random-level", "random-client"]
"""Which slices clients get: HeteroFL's; FedRolex's window; random ones, one for each rate, or one for each client."""


def prefix(full: int, kept: int) -> None:
    """Keep the first ``kept`` of ``full`` entries: HeteroFL's choice (section 3.1)."""


def rolling(start: int) -> SliceFunction:
    """Keep a window that begins at ``start`` and goes on at the beginning of the axis: FedRolex's choice."""
    return lambda full, kept: sorted((start + number) % full for number in range(kept))


def random_subset(seed: int, *purpose: int | str) -> SliceFunction:
    """Keep what is drawn, the same for axes of equal lengths: Federated Dropout's choice."""
    return lambda full, kept: sorted(generator(seed, *purpose, full, kept).sample(range(full), kept))


def make_slice_function(rule: SliceRule, *, seed: int, server_round: int, rate: float, partition: int) -> SliceFunction:
    """Return what a client keeps in a round; all but prefixes change from round to round.

    Parameters
    ----------
    rule : SliceRule
        ``prefix``; ``rolling``: a window that moves on by one each round; ``random-level``: clients of equal rate
        share what is drawn; ``random-client``: each has its own.
    seed, server_round, rate, partition : int, int, float, int
        What the draws depend on; rounds are counted from 1.
    """
    if rule == "prefix":
        return prefix
    if rule == "rolling":
        return rolling(server_round - 1)
    if rule == "random-level":
        return random_subset(seed, "slice", server_round, str(rate))
    return random_subset(seed, "slice", server_round, partition)
