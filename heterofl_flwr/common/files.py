"""Atomic writes, locks of folders, strict JSON, and errors that name the file."""

import json
import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from heterofl_flwr.common.errors import ConfigError, HeteroFLError

logger = logging.getLogger(__name__)

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)
"""Exceptions from reading a damaged or forged file; deeply nested JSON raises ``RecursionError``."""

CLIENT_STATES = "*.safetensors"
"""Glob pattern of a client's state files; the star stands for the round."""


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file with the permission bits ``mode``, less the umask. An old file is replaced in full or not at all.

    Raise ``HeteroFLError`` on failure.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with writing(path):
        try:
            # Mode x never opens an existing file or link.
            with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text by ``write_atomic`` in UTF-8. Characters that UTF-8 cannot encode, as in some paths, become ``?``."""
    write_atomic(path, text.encode(errors="replace"))


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and sync it.

    Raise ``HeteroFLError`` on failure; a partly written line is removed.
    """
    data = f"{line}\n".encode()
    # Without a buffer, closing the file after a failure writes nothing.
    with writing(path), open(path, "ab", buffering=0, opener=_open_no_link) as file:
        size = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise


def _open_no_link(path: str, flags: int) -> int:
    """Open a file; raise ``OSError`` if it is a symbolic link. On Windows, links are followed."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _sync(folder: Path) -> None:
    """Sync a folder, so that a power failure does not lose the name of a new file."""
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders; it syncs names itself
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager for writing a file: create its folder, and sync this folder on exit.

    An ``OSError`` becomes a ``HeteroFLError``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise HeteroFLError(
            f"cannot write {path}: {error.strerror or error}; what was there before is untouched. "
            f"Make room or grant access, then go on, or choose another folder"
        ) from error
    try:
        _sync(path.parent)
    except OSError as error:
        raise HeteroFLError(
            f"{path} is written, but a power failure could lose it, because its folder cannot be synced: "
            f"{error.strerror or error}. Let this process read the folder, then go on, or choose another one"
        ) from error


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Context manager for reading a file: errors in ``DAMAGED`` become a ``ConfigError`` that ends with ``remedy``."""
    try:
        yield
    except DAMAGED as error:
        raise ConfigError(f"{path} cannot be read: {error!r}; {remedy}") from error


def remove(path: Path) -> None:
    """Remove a file; raise ``HeteroFLError`` on failure."""
    try:
        path.unlink()
    except OSError as error:
        raise HeteroFLError(f"cannot remove {path}: {error.strerror or error}; grant access to its folder") from error


def make_folder(folder: Path) -> None:
    """Create a folder with its parents; raise ``HeteroFLError`` on failure."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeteroFLError(
            f"cannot create {folder}: {error.strerror or error}; grant access, or choose another folder"
        ) from error


def acquire_lock(folder: Path, *, shared: bool = False) -> FileLock:
    """Make a folder and acquire its lock.

    Raise ``ConfigError`` if another process has the lock. With ``shared``, several callers in this process can hold the
    lock. On a file system without locks, only log a warning.
    """
    make_folder(folder)
    lock = FileLock(folder.resolve() / ".lock", blocking=False, thread_local=False, is_singleton=shared)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"another process runs in {folder}: let it end, or end it (flwr stop), or choose another folder"
        ) from error
    except (OSError, NotImplementedError) as error:  # such as a network file system without locks
        logger.warning("%s cannot be locked (%s): let no other run write there", folder, error)
    return lock


def files_by_round(folder: Path, pattern: str) -> dict[int, Path]:
    """Return the paths that match ``pattern``, such as ``round-*.json``, by round in ascending order."""
    before, after = pattern.split("*")
    numbers = {path: path.name.removeprefix(before).removesuffix(after) for path in folder.glob(pattern)}
    return dict(sorted((int(number), path) for path, number in numbers.items() if number.isdecimal()))


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return a value as strict JSON; NaN and infinity become strings."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    # A path that is not UTF-8 has surrogates, which JSON can escape and UTF-8 cannot encode.
    return text.encode(errors="backslashreplace").decode()


def plain(value: object) -> object:
    """Convert a value for strict JSON; NaN, infinity and unknown types become strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
