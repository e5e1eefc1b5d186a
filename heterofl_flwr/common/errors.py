"""The errors of this package; all derive from ``HeteroFLError``.

::

    HeteroFLError
    ├── ConfigError            (ValueError)  a setting, a mix, a rate or a level is invalid
    ├── ShapeError             (ValueError)  the shapes of two models or states do not match
    ├── DataError              (ValueError)  a data set or a batch is invalid
    ├── ReplyError             (ValueError)  a client's reply, or the server's message, is rejected
    ├── RoundError                          too few clients are connected, or too few replied
    ├── OutOfMemoryError       (MemoryError) a client's model and batch need more memory than available
    ├── MissingExtraError      (ImportError) a package of an optional extra is not installed
    └── UnsupportedLayerError  (TypeError)   a layer or a model cannot be sliced
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Literal, TypeVar

Expected = TypeVar("Expected")

__all__ = [
    "ConfigError",
    "DataError",
    "Fault",
    "HeteroFLError",
    "MissingExtraError",
    "OutOfMemoryError",
    "ReplyError",
    "RoundError",
    "ShapeError",
    "UnsupportedLayerError",
]


class HeteroFLError(Exception):
    """Base of all errors of this package."""


class ConfigError(HeteroFLError, ValueError):
    """A setting, a mix, a rate or a level is invalid."""


class ShapeError(HeteroFLError, ValueError):
    """The shapes of two models or states do not match."""


class DataError(HeteroFLError, ValueError):
    """A data set or a batch is invalid."""


class ReplyError(HeteroFLError, ValueError):
    """A client's reply, or the server's message to a client, is rejected; no part of it is used."""


class RoundError(HeteroFLError):
    """Too few clients are connected, or too few replied.

    Strategies raise a subclass that is also Flower's ``AggregationError``.
    """


class OutOfMemoryError(HeteroFLError, MemoryError):
    """A client's model and batch need more memory than available."""


class MissingExtraError(HeteroFLError, ImportError):
    """A package of an optional extra is not installed."""


class UnsupportedLayerError(HeteroFLError, TypeError):
    """A layer or a model cannot be sliced."""


FaultKind = Literal["failed", "rejected", "silent", "gone", "late", "simulated", "unsent"]
"""Kind of fault. ``failed``: the client failed. ``rejected``: its reply was rejected. ``silent``: no reply came in
time. ``gone``: the node or its process no longer exists. ``late``: the node sends each reply one message late.
``simulated``: a simulated device was lost, which is not the client's fault. ``unsent``: the simulated device was
unavailable, so nothing was sent to it.
"""

MORE_TIME = "give rounds more time (engine.timeout, or start(timeout=...))"
"""Advice for a round in which ``SILENT`` is the reason of every fault."""

SILENT = "no reply in time"
"""Fault reason of a client that sent no reply."""

LONGEST_FAULT = 1000
SHOWN_FAULTS = 3
"""Maximum number of distinct errors that ``name_faults`` lists."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Reason why a client's reply is not used."""

    reason: str
    kind: FaultKind = "failed"


def short(fault: str, longest: int = LONGEST_FAULT) -> str:
    """Return a client's error as printable text; if it is longer than ``longest``, its middle is left out.

    Lines after the first are indented, so a client cannot forge lines of the log.
    """
    if len(fault) > longest:
        fault = f"{fault[: longest // 2]} ... {fault[-longest // 2 :]}"
    return printable(fault.rstrip("\n")).replace("\n", "\n    ")


def printable(text: str) -> str:
    """Replace each unprintable character except line breaks by U+FFFD."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def name_faults(what: str, faults: Mapping[int, str] | Mapping[str, str]) -> str:
    """Return text that lists each distinct error once, such as ``node 3 and 2 more: out of memory``.

    Errors that differ only in digits count as equal, and the first of them is listed. ``faults`` maps a client's id or
    name to its error. ``what`` is the word before the client, such as ``node``. The text lists at most
    ``SHOWN_FAULTS`` distinct errors, and then the number of the others.
    """
    alike: dict[str, list[tuple[int | str, str]]] = {}
    for client, fault in faults.items():
        alike.setdefault(without_numbers(fault), []).append((client, fault))
    named = []
    for (client, fault), *repeated in alike.values():
        count = f" and {len(repeated)} more" if repeated else ""
        named.append(f"{what} {client}{count}: {fault}".lstrip())
    rest = [counted(len(named) - SHOWN_FAULTS, "other error")] if len(named) > SHOWN_FAULTS else []
    return "; ".join([*named[:SHOWN_FAULTS], *rest])


def counted(number: int | str, noun: str) -> str:
    """Return a number with its noun, such as ``1 node`` or ``2 nodes``."""
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return the first ``most`` names in sorted order, and the number of remaining names."""
    ordered = sorted(names)
    rest = [f"{len(ordered) - most} more"] if len(ordered) > most else []
    return ", ".join([*ordered[:most], *rest])


@contextmanager
def extra(name: str, otherwise: str = "") -> Iterator[None]:
    """Context manager for imports from an optional extra. A missing package raises ``MissingExtraError``.

    Parameters
    ----------
    name : str
        The extra, as in ``pip install 'heterofl-flwr[name]'``.
    otherwise : str
        Alternative to the extra, for the end of the error message, such as ``use --grid local``.
    """
    try:
        yield
    except MissingExtraError:  # raised by a module of this package that was imported here
        raise
    except ImportError as error:
        remedy = f"pip install 'heterofl-flwr[{name}]' (in a checkout '.[{name}]')"
        remedy += f", or {otherwise}" if otherwise else ""
        raise MissingExtraError(f"{error}: {remedy}") from error


def without_numbers(text: str) -> str:
    """Return text without digits, so that error messages that differ only in digits become equal."""
    return re.sub(r"\d+", "", text)


def first_line(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def check_count(name: str, value: object, least: int) -> None:
    """Raise ``ConfigError`` if ``value`` is not an integer, or is below ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; expected an integer of {least} or more")


def check_seconds(name: str, value: object) -> None:
    """Raise ``ConfigError`` if ``value`` is not a number of 0 or more."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise ConfigError(f"{name} is {value!r}; expected a number of seconds, such as 3600")


def check_takes(what: str, function: Callable[..., object] | None, *arguments: str) -> None:
    """Raise ``ConfigError`` if ``function`` is neither None nor callable with these positional ``arguments``."""
    if function is None:
        return
    call = f"{what}({', '.join(arguments)})"
    if not callable(function):
        raise ConfigError(f"{what} is {shown(function)}; expected a function, called as {call}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise ConfigError(f"{what} is called as {call}, which fails: {error}") from None
    except ValueError:  # some functions in C have no signature
        pass


def check_list(what: str, names: object, example: str) -> None:
    """Raise ``ConfigError`` if ``names`` is not a collection of texts; a single text is an error too."""
    if isinstance(names, str) or not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{what} is {shown(names)}; expected a list of names, such as [{example!r}]")


def check_returned(kind: type[Expected], result: object, source: str) -> Expected:
    """Return ``result``, which ``source`` returned; raise ``ConfigError`` if it is not an instance of ``kind``."""
    if not isinstance(result, kind):
        raise ConfigError(f"{source} returned {type(result).__name__}; expected {kind.__name__}")
    return result
