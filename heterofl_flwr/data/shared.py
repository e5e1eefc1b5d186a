"""Shared memory: all processes of a run on a machine use one copy of the data set."""

import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from hashlib import sha256
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from heterofl_flwr.data.dataset import Dataset, Reading, Split
from heterofl_flwr.data.transforms import Normal

log = logging.getLogger(__name__)

VARIABLE = "HETEROFL_SHARED"
"""Environment variable with the path of the shared memory and a random token that is hashed into the memory's name."""

PAGE = 4096
"""Alignment of tensors, in bytes; the last bits of a matrix product may depend on it."""

_KINDS = {kind.__name__: kind for kind in (Dataset, Split, Reading, Normal)}


@contextmanager
def share(dataset: Dataset, key: object) -> Iterator[None]:
    """Context manager: share a data set with processes that call ``find`` with the same key.

    Those processes must inherit the environment variables of this process. If sharing fails, a warning is logged, and
    each process loads the data set itself.
    """
    with ExitStack() as opened:
        try:
            token = secrets.token_hex(8)
            descriptor = os.memfd_create(_name(token, key))
            opened.callback(os.close, descriptor)
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
            with open(path, "wb") as file:
                _write(file, dataset)
            mapped = _read(path)
            for private, shared in ((dataset.train, mapped.train), (dataset.test, mapped.test)):
                private.inputs.data = shared.inputs
                private.targets.data = shared.targets
            os.environ[VARIABLE] = f"{path} {token}"
            opened.callback(os.environ.pop, VARIABLE, None)
        except (OSError, AttributeError) as error:
            log.warning("each process loads the data set %s, because it cannot be shared: %s", dataset.name, error)
            opened.close()
        yield


def find(key: object) -> Dataset | None:
    """Return the data set that another process shares under this key, or None."""
    path, _, token = os.environ.get(VARIABLE, "").partition(" ")
    with suppress(OSError):  # the other process runs on another machine, or its files may not be read
        if path and os.readlink(path) == f"/memfd:{_name(token, key)} (deleted)":
            return _read(path)
    return None


def _name(token: str, key: object) -> str:
    return f"heterofl-{sha256(f'{token} {key}'.encode()).hexdigest()[:32]}"


def _write(file: BinaryIO, dataset: Dataset) -> None:
    places: dict[int, tuple[int, Tensor]] = {}  # by id: a text's targets are its inputs
    size = 0

    def describe(value: Any) -> dict[str, list[Any]]:
        nonlocal size
        if not isinstance(value, Tensor):
            return {type(value).__name__: [getattr(value, field.name) for field in fields(value)]}
        if id(value) not in places:
            places[id(value)] = size, value
            size += _round_up(value.nbytes)
        return {"Tensor": [places[id(value)][0], str(value.numpy().dtype), value.shape]}

    header = f"{json.dumps(dataset, default=describe)}\n".encode()
    file.write(header)
    for place, tensor in places.values():
        file.seek(_round_up(len(header)) + place)
        file.write(tensor.contiguous().numpy().data)


def _read(path: str) -> Dataset:
    with open(path, "rb") as file:
        header = file.readline()
    tensors: dict[int, Tensor] = {}

    def restore(value: dict[str, list[Any]]) -> object:
        ((kind, values),) = value.items()
        values = [tuple(item) if isinstance(item, list) else item for item in values]
        if kind != "Tensor":
            return _KINDS[kind](*values)
        place, dtype, shape = values
        if place not in tensors:
            array = np.memmap(path, dtype, "c", _round_up(len(header)) + place, shape)  # c: copy on write
            tensors[place] = torch.from_numpy(array)
        return tensors[place]

    return cast("Dataset", json.loads(header, object_hook=restore))


def _round_up(number: int) -> int:
    return -(-number // PAGE) * PAGE
