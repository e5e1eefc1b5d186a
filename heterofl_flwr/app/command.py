"""The command ``heterofl``."""

import argparse
from collections.abc import Sequence

from heterofl_flwr import __version__
from heterofl_flwr.app.commands import export, keys, profile, report, run, settings
from heterofl_flwr.app.status import status_of

COMMANDS = (run, report, export, settings, profile, keys)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    top = argparse.ArgumentParser(
        prog="heterofl",
        description="Train one global model over clients of unequal size: HeteroFL on Flower.",
        epilog="'heterofl COMMAND --help' says more on each.",
    )
    top.add_argument("--version", action="version", version=f"heterofl-flwr {__version__}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(subparsers)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 only if it did what was asked, 2 for what cannot be asked."""

    def work() -> int:
        args = parser().parse_args(arguments)
        code: int = args.run(args)
        return code

    return status_of("heterofl", work)
