"""Slice rules: which entries of an axis a client keeps.

HeteroFL keeps a prefix, FedRolex a moving window, Federated Dropout a random subset. A slice function receives only the
length of one part of an axis and the number of entries to keep. Coupled axes, for example in a residual stream, have
equal lengths, so every slice function keeps them aligned.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from heterofl_flwr.core.randomness import generator

SliceFunction = Callable[[int, int], Sequence[int] | None]
"""Function of an axis' length and the number of entries to keep. It returns their ascending positions, or None for a
prefix.
"""

SliceRule = Literal["prefix", "important", "rolling", "random-level", "random-client"]
"""Rule that selects the clients' slices: ``prefix`` is HeteroFL's; ``important`` is a prefix of ordered channels
(``channel_order``); ``rolling`` is FedRolex's window; ``random-level`` is a random subset for each rate,
``random-client`` for each client.
"""

NESTED_RULES: tuple[SliceRule, ...] = ("prefix", "important")
"""Rules whose slices are all prefixes, so that smaller slices lie inside larger ones."""


def prefix(length: int, number: int) -> None:
    """Keep the first ``number`` of ``length`` entries: HeteroFL's slices (section 3.1)."""


def make_slice_function(rule: SliceRule, *, seed: int, server_round: int, rate: float, partition: int) -> SliceFunction:
    """Return a client's slice function in a round; only prefixes are the same in every round.

    Parameters
    ----------
    rule : SliceRule
        ``prefix`` and ``important``; ``rolling``: FedRolex's window, which moves by one entry each round;
        ``random-level``: Federated Dropout, where clients of equal rate share a random subset; ``random-client``: each
        client has another random subset.
    seed, server_round, rate, partition : int, int, float, int
        Inputs of the random draws; the first round is 1. For a window that moves by more than one entry, see
        ``window_number``.
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
    """Return the round in which a window with step 1 is where one with step ``roll_by`` is in ``server_round``."""
    return 1 + roll_by * (server_round - 1)
