"""What the programs of this folder share: a parser that shows examples, and how they tell what cannot be asked."""

import argparse
import sys
from collections.abc import Callable

from heterofl_flwr.errors import HeteroFLError

MISUSED = 2


def parser_of(program: str, description: str | None, examples: str = "") -> argparse.ArgumentParser:
    """Return the parser of ``python -m <program>``."""
    return argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog=examples,
        formatter_class=formatter,
    )


def formatter(prog: str) -> argparse.HelpFormatter:
    """Keep line breaks, and say what a subcommand does on one line."""
    return argparse.RawDescriptionHelpFormatter(prog, width=100)


def status_of(program: str, work: Callable[[], int | None]) -> int:
    """Do the work; return its exit status, 0 if it has none, and for what cannot be done say why and return 2."""
    try:
        return work() or 0
    except HeteroFLError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return MISUSED
