"""Slice rules, which entries of an axis a client keeps: HeteroFL a prefix, FedRolex a window, Federated Dropout any.

A slice function sees the length of one part of an axis and how much of it is kept, and nothing else. Coupled axes have
equal lengths, as in a residual stream, so every slice function keeps them aligned.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from heterofl_flwr.core.randomness import generator

SliceFunction = Callable[[int, int], Sequence[int] | None]
"""From the length of an axis and the number of entries to keep, their positions, ascending; ``None`` is a prefix."""

SliceRule = Literal["prefix", "important", "rolling", "random-level", "random-client"]
"""Slices of clients: HeteroFL's; the same of ordered channels (``channel_order``); FedRolex's window; random ones, one
for each rate, or one for each client.
"""

NESTED_RULES: tuple[SliceRule, ...] = ("prefix", "important")
"""Rules by which every slice is a prefix, so that smaller ones lie inside larger ones."""


def prefix(length: int, number: int) -> None:
    """Keep the first ``number`` of ``length`` entries: HeteroFL's slices (section 3.1)."""


def make_slice_function(rule: SliceRule, *, seed: int, server_round: int, rate: float, partition: int) -> SliceFunction:
    """Return the slice function of a client in a round; all but prefixes change from round to round.

    Parameters
    ----------
    rule : SliceRule
        ``prefix`` and ``important``; ``rolling``: FedRolex's window, which moves on by one each round;
        ``random-level``: Federated Dropout, where clients of equal rate share a random subset; ``random-client``: each
        has its own.
    seed, server_round, rate, partition : int, int, float, int
        What the draws depend on; rounds are counted from 1. Of a window that moves on by more, see ``window_number``.
    """
    if rule in NESTED_RULES:
        return prefix
    if rule == "rolling":
        return lambda length, number: sorted((server_round - 1 + place) % length for place in range(number))
    owner = str(rate) if rule == "random-level" else partition
    # Axes of equal lengths get equal draws.
    return lambda length, number: sorted(
        generator(seed, "slice", server_round, owner, length, number).sample(range(length), number)
    )


def window_number(server_round: int, roll_by: int) -> int:
    """Return the round in which a window that moves on by one is where one that moves on by ``roll_by`` is now."""
    return 1 + roll_by * (server_round - 1)
