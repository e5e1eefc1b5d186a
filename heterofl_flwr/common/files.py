"""Files that are written whole or not at all, strict JSON, and errors that name a file which cannot be read."""

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

from heterofl_flwr.common.errors import ConfigError, HeteroFLError

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)
"""Errors of reading a damaged or forged file; endless brackets in JSON end in a ``RecursionError``."""

CLIENT_STATES = "*.safetensors"
"""The states of one client, by round."""


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file under a temporary name, sync it to the disk, and only then give it its name.

    ``mode`` says who may read it, of those whom the process's umask allows: not for a moment others.

    Raises
    ------
    HeteroFLError
        If the file cannot be written, for example because the disk is full. What was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with writing(path):
        try:
            # x: never a file, or a link, that is there already.
            with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
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
    """Open a file, but not what a link of its name leads to: who may write into the folder could plant one.

    Windows has no such flag, and lets few users make links.
    """
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of what is written, and sync it afterwards: a new name outlives a power cut."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
        if hasattr(os, "O_DIRECTORY"):  # Windows, which opens no folders, writes names by itself
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise HeteroFLError(
            f"cannot write {path}: {error.strerror or error}; what was there before is untouched. "
            f"Make room or grant access, then go on, or choose another folder"
        ) from error


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Raise ``ConfigError`` with the file's name and a remedy where reading it fails."""
    try:
        yield
    except DAMAGED as error:
        raise ConfigError(f"{path} cannot be read: {error!r}; {remedy}") from error


def remove(path: Path) -> None:
    """Remove a file."""
    try:
        path.unlink()
    except OSError as error:
        raise HeteroFLError(f"cannot remove {path}: {error.strerror or error}; grant access to its folder") from error


def files_by_round(folder: Path, pattern: str) -> dict[int, Path]:
    """Return the files of a folder by the round that the star of a pattern stands for (``round-*.json``), ascending."""
    before, after = pattern.split("*")
    numbers = {path: path.name.removeprefix(before).removesuffix(after) for path in folder.glob(pattern)}
    return dict(sorted((int(number), path) for path, number in numbers.items() if number.isdecimal()))


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
