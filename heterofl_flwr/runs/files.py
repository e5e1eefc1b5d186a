"""Writing to disk so that a reader finds the old content or the new one, never half of either."""

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


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, bring it to the disk, and only then give it its name.

    Raises
    ------
    HeteroFLError
        If the file cannot be written, for example because the disk is full. What was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb", opener=_no_link) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add one line at the end of a file and bring it to the disk; on failure the file is as it was before."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        # Without a buffer, nothing is left to be written when the file is closed after a failure.
        with open(path, "ab", buffering=0, opener=_no_link) as file:
            size = file.tell()
            try:
                _write_all(file.fileno(), f"{line}\n".encode())
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(size)
                raise
        if new:
            _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


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


def _no_link(path: str, flags: int) -> int:
    """Open a file, but not what a link of its name leads to: who may write into a folder could plant one."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _sync_folder(path: Path) -> None:
    """Bring a folder's own entries to the disk, so that a new name outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError) -> HeteroFLError:
    return HeteroFLError(
        f"cannot write {path}: {error.strerror or error}; what was there before is untouched. "
        f"Make room or grant access, then resume, or choose another folder"
    )


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


def states_in(folder: Path) -> dict[int, Path]:
    """Return the states in a client's folder by round, ascending; files of other names are none."""
    named = [path for path in folder.glob("*.safetensors") if path.stem.isdecimal()]
    return {int(path.stem): path for path in sorted(named, key=lambda path: int(path.stem))}


def state_path(folder: Path, server_round: int) -> Path:
    """Return where the state of a round is."""
    return folder / f"{server_round:06d}.safetensors"
