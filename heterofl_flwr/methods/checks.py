"""What a strategy's options and a client's report may be."""

import math
from typing import TypeVar, get_args

from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.errors import ConfigError, ReplyError

Word = TypeVar("Word", bound=str)


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


def fraction(name: str, value: float) -> float:
    """Return an option's value; refuse what is no share."""
    if not 0 < value <= 1:
        raise ConfigError(f"{name} is {value}; expected a number above 0 and up to 1")
    return value


def at_least(name: str, value: int | None) -> int | None:
    """Return an option's value; refuse what is no number of clients."""
    if value is not None and value < 0:
        raise ConfigError(f"{name} is {value}; expected a whole number from 0 up")
    return value


def extra(name: str, value: float) -> float:
    """Return an option's value; refuse what is no share of clients beyond others."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{name} is {value}; expected a number of 0 or more")
    return value
