"""Of two processes that write to one folder, the second is refused."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heterofl_flwr.errors import ConfigError

log = logging.getLogger(__name__)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made where there is none. The system gives it back when this process ends in any way.

    Raises
    ------
    ConfigError
        If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process runs in {folder}: let it end, or end it (flwr stop), or choose another folder"
            ) from error
        except OSError as error:  # such as a network's file system without locks
            log.warning("%s cannot be locked (%s): let no other run write there", folder, error)
        yield
    finally:
        os.close(descriptor)
