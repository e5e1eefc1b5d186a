"""Folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heterofl_flwr.errors import ConfigError, HeteroFLError


@contextmanager
def whole_folder(path: Path, *, marked_by: str) -> Iterator[Path]:
    """Yield a new folder that takes a path's place when all went well; after an error nothing is left of it.

    Parameters
    ----------
    path : Path
        Where to. A folder that is there is replaced if it holds a file ``marked_by``, and refused if it does not: then
        it is not ours.
    marked_by : str
        The name of a file.
    """
    if path.exists() and not (path / marked_by).is_file():
        raise ConfigError(f"{path} is there already and is no export (it has no {marked_by}): choose another folder")
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)  # of a process of this number that was killed
        new.mkdir()
        yield new
        for file in new.iterdir():
            _sync(file)
        if path.exists():
            path.rename(old)
        new.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise HeteroFLError(
            f"cannot write {path}: {error.strerror or error}; make room or grant access, or choose another folder"
        ) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
