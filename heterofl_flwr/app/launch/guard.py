"""The process that cleans up after a run, also when the launcher is killed.

It waits until its standard input ends, which happens when the launcher closes the pipe and also when it dies in any
way. Then it ends every process of the run and removes the run's private folder.
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from heterofl_flwr.app.launch import processes

LONGEST = 30.0


class Guard:
    """Starts the process; ``release`` lets it clean up and waits until it has."""

    def __init__(self, mark: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-m", __name__, mark, str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal goes to all of the launcher's own session
            env={name: value for name, value in environment.items() if name != processes.MARK},
        )

    def release(self) -> None:
        """Clean up."""
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(LONGEST)


def main(mark: str, folder: str) -> None:
    """Wait, then clean up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    processes.end(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
