"""A process that cleans up after another, also where that is killed.

It waits until its standard input ends, which happens when the other closes the pipe and also when it dies in any way.
Then it ends every process that has a mark in its environment, with its descendants, and removes a folder. Ray's workers
overwrite their environment, but they are descendants of processes that do not.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

MARK = "HETEROFL_LAUNCH"
"""The environment variable that holds the mark."""

PATIENCE = 5.0
"""Seconds in which killed processes end."""


def marked(mark: str) -> set[psutil.Process]:
    """Return all living processes with a mark, and their descendants."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get(MARK) == mark:
                found |= {process, *process.children(recursive=True)}
    return found


@contextmanager
def guarded(mark: str, folder: Path) -> Iterator[None]:
    """End the processes with a mark, and remove a folder, when this ends or this process does."""
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__, mark, str(folder)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal goes to all of this process's own session
    )
    try:
        yield
    finally:
        guard.communicate()


def main(mark: str, folder: str) -> None:
    """Wait, then clean up."""
    sys.stdin.buffer.read()
    deadline = time.monotonic() + PATIENCE
    while (left := marked(mark)) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
