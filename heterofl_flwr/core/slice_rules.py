"""Slice rules: which entries of an axis a client keeps."""

# A slice function sees only lengths. So axes of equal length that belong together, for example in a residual stream,
# keep entries at the same positions.

from collections.abc import Callable, Sequence
from typing import Literal

from heterofl_flwr.core.randomness import generator

SliceFunction = Callable[[int, int], Sequence[int] | None]
"""Function of an axis' length and the number of entries to keep. It returns the ascending positions of these entries,
or None for the first entries.
"""

SliceRule = Literal["prefix", "important", "rolling", "random-level", "random-client"]
"""Rule that selects the clients' slices; see ``make_slice_function``."""

NESTED_RULES: tuple[SliceRule, ...] = ("prefix", "important")
"""Rules whose slices are all prefixes, so that smaller slices lie inside larger ones."""

CLIENT_RULES: tuple[SliceRule, ...] = ("random-client",)
"""Rules whose slices differ between clients of one rate, so that each client needs a message of its own."""


def prefix(length: int, number: int) -> None:
    """Return None, which stands for the first ``number`` entries: HeteroFL's slices (section 3.1)."""


def make_slice_function(rule: SliceRule, *, seed: int, server_round: int, rate: float, partition: int) -> SliceFunction:
    """Return the slice function of a client in a round.

    Parameters
    ----------
    rule : SliceRule
        ``prefix``: the first entries (HeteroFL). ``important``: also the first entries, after the server has sorted the
        channels by importance. ``rolling``: a window that moves by one entry in each round and wraps around (FedRolex).
        ``random-level``: a random subset for each rate and round (Federated Dropout). ``random-client``: a random
        subset for each client and round.
    seed, server_round, rate, partition : int, int, float, int
        Inputs of the random draws. Only ``random-level`` uses ``rate``. Only ``random-client`` uses ``partition``, the
        client's partition number. The window of ``rolling`` starts at entry ``server_round - 1``. To move the window by
        several entries in each round, pass ``window_number(...)`` as ``server_round``.
    """
    if rule in NESTED_RULES:
        return prefix
    if rule == "rolling":
        return lambda length, number: sorted((server_round - 1 + place) % length for place in range(number))
    owner = partition if rule in CLIENT_RULES else str(rate)
    # Axes of equal lengths get equal draws.
    return lambda length, number: sorted(
        generator(seed, "slice", server_round, owner, length, number).sample(range(length), number)
    )


def window_number(server_round: int, roll_by: int) -> int:
    """Return the number to pass to ``make_slice_function`` as ``server_round``.

    The window of ``rolling`` then moves by ``roll_by`` entries in each round.
    """
    return 1 + roll_by * (server_round - 1)
