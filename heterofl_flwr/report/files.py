"""Writing to disk so that a reader finds the old content or the new one, never half of either."""

import json
import math
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from heterofl_flwr.errors import HeteroFLError


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
