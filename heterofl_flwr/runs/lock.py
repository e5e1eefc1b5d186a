"""Lock of a run's folder, so that a second process cannot run there."""

import logging
from pathlib import Path

from filelock import FileLock, Timeout

from heterofl_flwr.common.errors import ConfigError

log = logging.getLogger(__name__)


def acquire_lock(folder: Path, *, shared: bool = False) -> FileLock:
    """Make a folder and acquire its lock.

    Raise ``ConfigError`` if another process has the lock. With ``shared``, several callers in this process can hold the
    lock. On a file system without locks, only log a warning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.resolve() / ".lock", blocking=False, thread_local=False, is_singleton=shared)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"another process runs in {folder}: let it end, or end it (flwr stop), or choose another folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # such as a network file system without locks
        log.warning("%s cannot be locked (%s): let no other run write there", folder, error)
    return lock
