"""What the programs of this folder share: a parser that shows examples, names on the command line, and how they end."""

import argparse
import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from heterofl_flwr.app.cli.main import status_of as status_of
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.runs.files import remove, write_atomic


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def parser_of(program: str, description: str | None, examples: str = "") -> argparse.ArgumentParser:
    """Return the parser of ``python -m <program>``."""
    return argparse.ArgumentParser(
        prog=f"python -m {program}", description=description, epilog=examples, formatter_class=formatter
    )


def formatter(prog: str) -> argparse.HelpFormatter:
    """Keep line breaks, and say what a subcommand does on one line."""
    return argparse.RawDescriptionHelpFormatter(prog, width=100)


def chosen(what: str, names: Collection[str], known: Sequence[str]) -> list[str]:
    """Return what was asked for, in the order of what is known; all of it where nothing was asked for."""
    for name in names:
        if name not in known:
            near = get_close_matches(name, known) if len(known) > 5 else []
            raise ConfigError(f"there is no {what} {name!r}; expected one of {', '.join(near or known)}")
    return [name for name in known if not names or name in names]


def words(text: str) -> list[str]:
    """Return the values of an option, between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def write_files(out: Path, files: Mapping[str, bytes], stale: str) -> None:
    """Write files into a folder, and remove those of an earlier call that match a pattern and are not among them."""
    for name, data in files.items():
        write_atomic(out / name, data)
    for path in set(out.glob(stale)) - {out / name for name in files}:
        remove(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return what is kept in a file, one JSON object a line; nothing where there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


@contextmanager
def without_logs() -> Iterator[None]:
    """Log nothing, where each rejected reply would be a warning."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
