"""Files that are written whole or not at all, strict JSON, and the lock of a folder."""

import fcntl
import json
import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from heterofl_flwr.errors import ConfigError, HeteroFLError

log = logging.getLogger(__name__)

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a file raises that is damaged or forged; endless brackets in JSON end in a ``RecursionError``."""


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, sync it to the disk, and only then give it its name.

    Raises
    ------
    HeteroFLError
        If the file cannot be written, for example because the disk is full. What was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with _written_in(path):
            with open(temporary, "xb", opener=_no_link) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add one line at the end of a file and sync it to the disk; on failure the file is as it was before."""
    data = f"{line}\n".encode()
    # Without a buffer, nothing is left to be written when the file is closed after a failure.
    with _written_in(path), open(path, "ab", buffering=0, opener=_no_link) as file:
        size = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise


@contextmanager
def _written_in(path: Path) -> Iterator[None]:
    """Make a file's folder before it is written, and sync the folder afterwards: a new name outlives a power cut."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HeteroFLError(
            f"cannot write {path}: {error.strerror or error}; what was there before is untouched. "
            f"Make room or grant access, then resume, or choose another folder"
        ) from error


def _no_link(path: str, flags: int) -> int:
    """Open a file, but not what a link of its name leads to: who may write into a folder could plant one."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def remove(path: Path) -> None:
    """Remove a file."""
    try:
        path.unlink()
    except OSError as error:
        raise HeteroFLError(f"cannot remove {path}: {error.strerror or error}; grant access to its folder") from error


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return a value as strict JSON; numbers that JSON lacks (nan, inf) become the text that ``float`` reads back."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder, which is made where there is none. The system unlocks it when this process ends in any way.

    Raises
    ------
    ConfigError
        If another process holds the lock.
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


def client_states(folder: Path) -> dict[int, Path]:
    """Return the states in a client's folder by round, ascending; files of other names do not count."""
    named = {int(path.stem): path for path in folder.glob("*.safetensors") if path.stem.isdecimal()}
    return dict(sorted(named.items()))


def client_state_path(folder: Path, server_round: int) -> Path:
    """Return the path of the state of a round in a client's folder."""
    return folder / f"{server_round:06d}.safetensors"
