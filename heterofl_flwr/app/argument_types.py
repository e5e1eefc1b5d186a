"""Types of command-line arguments, for parsers that do not load torch."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

TABLE_FORMATS = ("table", "csv", "markdown", "latex")
"""Styles of ``core.formatting.render``, repeated here because importing that module would load torch."""


def read_path(text: str) -> Path:
    """Return a path, with ``~`` replaced by the home folder."""
    return Path(os.path.expanduser(text))


def read_count(text: str) -> int:
    """Return a positive integer; raise ``ArgumentTypeError`` for anything else."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer of 1 or more")
    return int(text)


def read_share(text: str) -> float:
    """Return a fraction or a whole number, 0 or more; raise ``ArgumentTypeError`` for anything else."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not (0 <= share <= 1 or (share.is_integer() and share > 0)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a share such as 0.25, or a whole number")
    return share


def read_integers(separator: str, example: str) -> Callable[[str], tuple[int, ...]]:
    """Return a function that reads positive integers joined by ``separator``, and shows ``example`` in its errors."""

    def read(text: str) -> tuple[int, ...]:
        parts = text.split(separator)
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise argparse.ArgumentTypeError(f"found {text!r}, expected positive integers such as {example}")
        return tuple(map(int, parts))

    return read
