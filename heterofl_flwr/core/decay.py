"""Decay factors: how much of a running value is kept from step to step, such as momentum and Adam's betas."""

DECAY = "0 or more, and less than 1"
"""What is expected of one, in words that follow "expected"."""


def is_decay(value: float) -> bool:
    """Whether a number can be a decay factor; with 1 or more, nothing would ever be forgotten."""
    return 0 <= value < 1
