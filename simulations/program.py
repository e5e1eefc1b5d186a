"""Functions for the programs of this folder: parsers, names on the command line, and runs that are stored in a file."""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from heterofl_flwr import Progress, RoundCallback, RoundRecord
from heterofl_flwr.app.main import status_of as status_of
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import append_line
from heterofl_flwr.nn.execution import torch_threads


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def parser_of(program: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of ``python -m <program>``."""
    return argparse.ArgumentParser(prog=f"python -m {program}", description=description, formatter_class=formatter)


def formatter(prog: str) -> argparse.HelpFormatter:
    """Return a help formatter that keeps line breaks, wide enough for one line for each subcommand."""
    return argparse.RawDescriptionHelpFormatter(prog, width=100)


def text_beside(module: str, name: str) -> str:
    """Return the text of a file beside a module (its ``__file__``), such as the template of a page."""
    return Path(module).with_name(name).read_text("utf-8")


def sections_beside(module: str, name: str) -> dict[str, str]:
    """Return the text below each heading (``## ...``) of a file beside a module; the text above them has the key ''."""
    head, *sections = text_beside(module, name).split("\n## ")
    return {"": head, **{title: text.strip() for title, _, text in (own.partition("\n") for own in sections)}}


def chosen(what: str, names: Collection[str], known: Sequence[str]) -> list[str]:
    """Return the names in ``names`` in the order of ``known``; all of ``known`` if ``names`` is empty.

    Raise ``ConfigError`` for a name that is not in ``known``; ``what`` is its kind, for the error.
    """
    for name in names:
        if name not in known:
            near = get_close_matches(name, known) if len(known) > 5 else []
            raise ConfigError(f"there is no {what} {name!r}; expected one of {', '.join(near or known)}")
    return [name for name in known if not names or name in names]


def start(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int | None], arguments: Sequence[str] | None
) -> int:
    """Run a program with the arguments, or else those of the process; return its exit code (see ``status_of``)."""
    return status_of(parser.prog.removeprefix("python -m "), lambda: run(parser.parse_args(arguments)))


@contextmanager
def quietly() -> Iterator[None]:
    """Context manager: nothing is logged (each rejected reply would be a warning), and torch uses one thread."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with torch_threads(1):
            yield
    finally:
        logging.disable(before)


class Records(list[RoundRecord], RoundCallback):
    """Callback that stores the records of all rounds."""

    def on_round_end(self, progress: Progress) -> bool:
        self.append(progress.record)
        return False


Cell = TypeVar("Cell", bound=Any)  # a dataclass
Line = dict[str, Any]


def run_cells(path: Path, wanted: Sequence[Cell], run: Callable[[Cell], Line]) -> dict[Cell, Line]:
    """Return the result of each wanted cell from the lines of a file (JSON), and run the cells that have no line."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    done = {type(wanted[0])(*(line.pop(one.name) for one in fields(wanted[0]))): line for line in lines}
    for number, cell in enumerate(wanted, 1):
        if cell not in done:
            started = time.monotonic()
            done[cell] = {**run(cell), "seconds": round(time.monotonic() - started, 2)}
            append_line(path, json.dumps({**asdict(cell), **done[cell]}))
            print(f"{number}/{len(wanted)}", *asdict(cell).values(), f"{done[cell]['seconds']} s", flush=True)
    return {cell: done[cell] for cell in wanted}  # the file may have cells of another study too
