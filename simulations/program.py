"""What the programs of this folder share: a parser that shows examples, and how they end."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from heterofl_flwr.app.cli.main import status_of as status_of


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


@contextmanager
def without_logs() -> Iterator[None]:
    """Log nothing, where each rejected reply would be a warning."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
