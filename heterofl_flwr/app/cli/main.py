"""How the programs of this project end: with an exit status, and one line where something cannot be done."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from heterofl_flwr import __version__
from heterofl_flwr.app.cli import keys, profile, results, run, settings
from heterofl_flwr.errors import HeteroFLError

FAILED = 1
MISUSED = 2
INTERRUPTED = 130


def status_of(program: str, work: Callable[[], int | None]) -> int:
    """Do the work; return its exit status: 0 if it has none, 2 for what cannot be asked.

    Parameters
    ----------
    program : str
        The name that begins each complaint.
    work : Callable[[], int | None]
        Reads the arguments too, for also their parser prints, and ends the process. An interrupt may say how to go on.
    """
    try:
        try:
            return work() or 0
        finally:
            sys.stdout.flush()  # here a reader that has had enough, such as head, is noticed
    except HeteroFLError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt as interrupt:
        print("; ".join([f"{program}: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


COMMANDS = {
    "run": run.add,
    "report": results.add_report,
    "export": results.add_export,
    "settings": settings.add,
    "profile": profile.add,
    "keys": keys.add,
}
"""The subcommands, and what adds each to the parser."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    top = argparse.ArgumentParser(
        prog="heterofl",
        description="Train one global model over clients of unequal size: HeteroFL on Flower.",
        epilog="'heterofl COMMAND --help' says more on each.",
    )
    top.add_argument("--version", action="version", version=f"heterofl-flwr {__version__}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS.values():
        add(subparsers)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 only if it did what was asked, 2 for what cannot be asked."""

    def work() -> int:
        args = parser().parse_args(arguments)
        code: int = args.run(args)
        return code

    return status_of("heterofl", work)
