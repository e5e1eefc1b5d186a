"""What a setting can be: how it is read from the four types that a run config knows, and written back."""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from heterofl_flwr.core.decay import DECAY, is_decay
from heterofl_flwr.core.levels import Mix, rate_of
from heterofl_flwr.data import check_kind
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.limits import REPLIES, MinReplies, reply_floor

Flat = bool | int | float | str
"""A value of a run config."""

AUTO = "auto"
"""Stands for the value that suits the data set; see ``presets``."""

_LARGEST = sys.float_info.max
"""Infinity is larger, and so are integers that no float can hold."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Kind(Generic[Value]):
    """One kind of value.

    Attributes
    ----------
    expected
        What is expected, in words that follow "expected".
    read
        From a value of a run config to the setting's own; raises ``ValueError`` where that cannot be.
    write
        The way back.
    """

    expected: str
    read: Callable[[Flat], Value]
    write: Callable[[Value], Flat]


def integer(least: int, most: int | None = None) -> Kind[int]:
    """Return integers from ``least`` on, up to ``most`` where it is given."""

    def read(value: Flat) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError
        if most is not None and value > most:
            raise ValueError
        return value

    return Kind(f"an integer of {least} or more" if most is None else f"an integer from {least} to {most:,}", read, int)


def number(*, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> Kind[float]:
    """Return finite numbers within bounds; integers are numbers too."""
    bounds = [(least, f"of {least:g} or more"), (above, f"above {above:g}"), (most, f"up to {most:g}")]
    expected = "a number " + " and ".join(words for bound, words in bounds if math.isfinite(bound))

    def read(value: Flat) -> float:
        if isinstance(value, bool | str) or not least <= value <= most or value <= above or abs(value) > _LARGEST:
            raise ValueError
        return float(value)

    return Kind(expected.strip(), read, float)


def decay() -> Kind[float]:
    """Return decay factors: how much of a running value is kept from step to step."""
    plain = number()

    def read(value: Flat) -> float:
        found = plain.read(value)
        if not is_decay(found):
            raise ValueError
        return found

    return Kind(f"a number of {DECAY}", read, float)


def replies() -> Kind[MinReplies]:
    """Return numbers of replies, shares, and ``auto``."""

    def read(value: Flat) -> MinReplies:
        try:
            return reply_floor("value", value)
        except ConfigError as error:
            raise ValueError from error

    return Kind(REPLIES, read, lambda value: value)


def flag() -> Kind[bool]:
    """Return true and false."""

    def read(value: Flat) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Kind("true or false", read, bool)


def flag_or(word: str) -> Kind[bool | str]:
    """Return true, false and a word."""

    def read(value: Flat) -> bool | str:
        if not isinstance(value, bool) and value != word:
            raise ValueError
        return value

    return Kind(f"true, false or '{word}'", read, lambda value: value)


def text(expected: str, pattern: str) -> Kind[str]:
    """Return text of which a pattern matches the whole."""

    def read(value: Flat) -> str:
        if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
            raise ValueError
        return value

    return Kind(expected, read, str)


def choice(*options: str) -> Kind[str]:
    """Return one of some words."""
    return text(f"one of {', '.join(option or repr(option) for option in options)}", "|".join(map(re.escape, options)))


def split() -> Kind[str]:
    """Return ways of dealing data to clients."""

    def read(value: Flat) -> str:
        if not isinstance(value, str):
            raise ValueError
        check_kind(value)
        return value

    return Kind("'iid', 'non-iid-2' (classes a client), 'dirichlet-0.3' or 'rotated-15' (degrees)", read, str)


def path() -> Kind[str]:
    """Return a path of a file system, or nothing."""
    return text("a path, or '' for none", r"[^\0]*")


def reference() -> Kind[str]:
    """Return where to import something, or nothing."""
    return text("'module:name', or '' for none", r"(?:[A-Za-z_][\w.]*:[A-Za-z_][\w.]*)?")


def integers(expected: str, *, ascending: bool = False) -> Kind[tuple[int, ...]]:
    """Return positive integers, written with commas, because a run config knows no lists. A single one may be bare."""

    def read(value: Flat) -> tuple[int, ...]:
        parts = _split(str(value) if isinstance(value, int) else value)
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise ValueError
        numbers = tuple(map(int, parts))
        if ascending and sorted(set(numbers)) != list(numbers):
            raise ValueError
        return numbers

    return Kind(expected, read, lambda numbers: ",".join(map(str, numbers)))


def words(expected: str) -> Kind[tuple[str, ...]]:
    """Return different names, each plain or ``module:name``, written with commas."""

    def read(value: Flat) -> tuple[str, ...]:
        parts = _split(value)
        if len(set(parts)) < len(parts) or not all(re.fullmatch(r"[\w.-]+(?::[\w.]+)?", part) for part in parts):
            raise ValueError
        return parts

    return Kind(expected, read, ",".join)


def patterns(expected: str) -> Kind[tuple[str, ...]]:
    """Return patterns of names, as ``fnmatch`` knows them, written with commas."""

    def read(value: Flat) -> tuple[str, ...]:
        parts = _split(value)
        if not all(re.fullmatch(r"[\w.*?\[\]!-]+", part) for part in parts):
            raise ValueError
        return parts

    return Kind(expected, read, ",".join)


def mix() -> Kind[Mix]:
    """Return a mix of rates."""

    def read(value: Flat) -> Mix:
        if not isinstance(value, str):
            raise ValueError
        return Mix.parse(value)

    return Kind("a mix such as 'a1-b1-c1-d1-e1', 'a1-e9' or '1.0x1-0.3x9'", read, str)


def level() -> Kind[str]:
    """Return a level or a rate, as text."""

    def read(value: Flat) -> str:
        rate_of(str(value))
        return str(value)

    return Kind("a level such as 'c' or a rate such as '0.3'", read, str)


def levels() -> Kind[tuple[tuple[str, str], ...]]:
    """Return levels by name, written with commas."""

    def read(value: Flat) -> tuple[tuple[str, str], ...]:
        cut = [part.partition("=") for part in _split(value)]
        pairs = tuple((name.strip(), text.strip()) for name, _, text in cut)
        if not all(name and rate_of(text) for name, text in pairs) or len(dict(pairs)) < len(pairs):
            raise ValueError
        return pairs

    return Kind(
        "different names with a level each, such as 'phone=c,camera=a', or '' for none",
        read,
        lambda pairs: ",".join(map("=".join, pairs)),
    )


def _split(value: Flat) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise ValueError
    return tuple(part.strip() for part in value.split(",")) if value.strip() else ()


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a setting beside its name and type. The default is written as a run config has it."""

    default: Flat
    kind: Kind[Any]
    help: str
