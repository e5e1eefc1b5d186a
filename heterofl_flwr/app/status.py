"""How the programs of this project end: with an exit status, and one line where something cannot be done."""

import os
import sys
from collections.abc import Callable

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
