"""Of two processes at the same sweep, one runs a job and the other is told so."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heterofl_flwr.errors import HeteroFLError


class HeldError(HeteroFLError):
    """Another process has the lock."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock. Raise ``HeldError`` where another process has it.

    The system releases it when its process ends in any way, so a lock is never stale. The file stays: to remove it
    would let two processes hold locks on two files of one name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise HeldError(f"runs in {file.read().strip() or 'another process'}") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
