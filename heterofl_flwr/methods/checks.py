"""What a strategy's options and a client's report may be."""

import math
from fractions import Fraction
from typing import Literal, TypeVar, get_args

from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.errors import ConfigError, ReplyError

Word = TypeVar("Word", bound=str)

MinReplies = int | float | Literal["auto"]
"""How many good replies a round needs: a number, a share of the clients that are needed, or half of them."""

REPLIES = "a whole number of 1 or more, or a share between 0 and 1"
"""What is expected beside ``auto``."""


def check_capacity(capacity: float | None) -> None:
    """Refuse a reply that reports a capacity which is no rate."""
    if capacity is not None:
        try:
            exact_rate(capacity)
        except ConfigError as error:
            raise ReplyError(f"the capacity it reports is not usable: {error}") from error


def one_of(name: str, value: Word, words: object) -> Word:
    """Return an option's value; refuse one that is not among a ``Literal``'s."""
    if value not in get_args(words):
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(get_args(words))}")
    return value


def fraction(name: str, value: float, *, zero: bool = False) -> float:
    """Return an option's value; refuse what is no share, and 0 unless it means something."""
    if not 0 <= value <= 1 or not (value or zero):
        raise ConfigError(f"{name} is {value}; expected a number {'from 0' if zero else 'above 0 and'} up to 1")
    return value


def at_least(name: str, value: int | None) -> int | None:
    """Return an option's value; refuse what is no number of clients."""
    if value is not None and value < 0:
        raise ConfigError(f"{name} is {value}; expected a whole number from 0 up")
    return value


def reply_floor(name: str, value: object) -> MinReplies:
    """Return an option's value; refuse what is neither a number of replies nor a share nor ``auto``."""
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, float) and 0 < value < 1:
        return value
    raise ConfigError(f"{name} is {value!r}; expected 'auto', {REPLIES}")


def least_replies(least: MinReplies, needed: int) -> int:
    """Return how many good replies a round needs, of which this many would be all."""
    if isinstance(least, int):
        return least
    share = Fraction(1, 2) if least == "auto" else Fraction(str(least))
    return max(math.ceil(share * needed), 1)


def extra(name: str, value: float) -> float:
    """Return an option's value; refuse what is no share of clients beyond others."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} is {value}; expected a number of 0 or more")
    return value
