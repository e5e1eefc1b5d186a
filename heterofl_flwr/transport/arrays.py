"""Tensors in Flower's array records."""

import io
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.common.named_tensors import entries_under
from heterofl_flwr.nn.moments import Moments, MomentsByRate
from heterofl_flwr.transport.messages import SCALES, SERVER, UPLOAD_RECORDS

HEADER_BYTES = 1024
"""Upper bound on the bytes of an array's header in the ``.npy`` format."""

ENTRY_BYTES = 8
"""Upper bound on the bytes of an entry in a reply. Client mods such as SecAgg+ reply in float64 for any model."""


class TensorArray(Array):
    """A Flower ``Array`` that stores a tensor, which is serialised when ``data`` is first read.

    The caller and readers share the tensor's memory, so do not change the tensor. A pickled or copied ``TensorArray``
    becomes an ``Array`` of Flower.
    """

    __qualname__ = "Array"  # Flower serialises objects by the name of their class

    def __init__(self, tensor: Tensor) -> None:
        dtype = str(tensor.numpy().dtype)
        self.__dict__.update(dtype=dtype, shape=tuple(tensor.shape), stype="numpy.ndarray", tensor=tensor)

    @property
    def data(self) -> bytes:
        """The array in the format of ``.npy`` files."""
        if (tensor := read_live(self)) is not None:
            self.data = Array(tensor).data
        data: bytes = self.__dict__["bytes"]
        return data

    @data.setter
    def data(self, data: bytes) -> None:
        self.__dict__["bytes"] = data
        self.__dict__["tensor"] = None  # after the bytes are set: another thread may read now

    def numpy(self) -> np.ndarray:
        """Return a copy as a NumPy array."""
        tensor = read_live(self)
        return super().numpy() if tensor is None else tensor.numpy().copy()

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


def pack_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return a record of tensors. The record may share their memory, so do not change the tensors."""
    record = ArrayRecord()
    for name, tensor in tensors.items():
        record[name] = TensorArray(tensor.detach().cpu().contiguous())
    return record


def read_live(array: Array) -> Tensor | None:
    """Return the tensor that an array stores; None if it stores bytes."""
    tensor: Tensor | None = array.__dict__.get("tensor")
    return tensor


def array_size(array: Array) -> int:
    """Return the serialised size of an array in bytes, without serialising it."""
    return len(array.data) if read_live(array) is None else npy_size(array.dtype, tuple(array.shape))


@lru_cache(maxsize=4096)
def npy_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the size in bytes of a ``.npy`` file with an array of this dtype and shape."""
    header = io.BytesIO()
    array = np.broadcast_to(np.zeros((), dtype), shape)  # a view, which allocates a single element
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.tell() + array.nbytes


def check_sizes(record: ArrayRecord, entries: Mapping[str, int], sender: str) -> None:
    """Raise ``ReplyError`` if an array is larger than expected, without unpacking it.

    ``entries`` has the number of entries of each array.
    """
    for name, array in record.items():
        most = ENTRY_BYTES * entries.get(name, 0) + HEADER_BYTES
        if (size := array_size(array)) > most:
            raise ReplyError(f"{sender} sent {size:,} bytes as {name[:80]!r}, expected up to {most:,}")


def count_bytes(arrays: ArrayRecord) -> int:
    """Return the serialised size of a record's arrays in bytes."""
    return sum(map(array_size, arrays.values()))


def content_bytes(content: RecordDict) -> int:
    """Return the serialised size in bytes of all arrays in a message."""
    return sum(count_bytes(record) for record in content.values() if isinstance(record, ArrayRecord))


@contextmanager
def reading_arrays(sender: str) -> Iterator[None]:
    """Context in which any error becomes a ``ReplyError`` that names ``sender``."""
    try:
        with warnings.catch_warnings():
            # numpy warns of unusual headers, and torch of arrays that must not be written to
            warnings.simplefilter("ignore", UserWarning)
            yield
    except Exception as error:  # invalid bytes can make numpy and torch raise almost any error
        raise ReplyError(f"{sender} sent arrays that cannot be read: {type(error).__name__}: {error}") from error


def read_tensors(record: ArrayRecord, sender: str = SERVER) -> dict[str, Tensor]:
    """Return the tensors of a record; raise ``ReplyError`` if an array is invalid.

    The tensors share memory with the record, so do not change them.
    """
    expected = "numpy.ndarray"  # Flower's name of its only serialisation of arrays
    with reading_arrays(sender):
        if unexpected := {array.stype for array in record.values()} - {expected}:
            raise ValueError(f"serialised as {unexpected.pop()!r}, expected {expected!r}")
        return {name: _read_array(array) for name, array in record.items()}


def _read_array(array: Array) -> Tensor:
    tensor = read_live(array)
    return torch.from_numpy(read_npy(array.data)) if tensor is None else tensor


def read_npy(data: bytes) -> np.ndarray:
    """Return the array in the content of a ``.npy`` file.

    The array shares memory with ``data``, so do not change it. Raise an error for archives, Python objects and extra
    bytes.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    size = math.prod(shape) * dtype.itemsize
    if len(data) - file.tell() != size:
        raise ValueError(f"{len(data) - file.tell()} bytes of values, expected {size}")
    return np.ndarray(shape, dtype, data, file.tell(), order="F" if by_columns else "C")


def pack_trained(tensors: Mapping[str, Tensor], scales: Tensor | None, form: str) -> dict[str, ArrayRecord]:
    """Return the array records of a reply: ``tensors``, already encoded as ``form``, and their ``scales`` if any."""
    records = {UPLOAD_RECORDS[form][0]: pack_tensors(tensors)}
    return records if scales is None else {**records, SCALES: pack_tensors({SCALES: scales})}


def pack_moments(moments: Mapping[float, Moments]) -> ArrayRecord:
    """Return a record with the moments of each rate."""
    return pack_tensors(moment_tensors(moments))


def moment_tensors(moments: Mapping[float, Moments]) -> dict[str, Tensor]:
    """Return the moments of each rate as tensors with names such as ``0.5/fixed.norm1.count``."""
    return {f"{rate}/{name}": tensor for rate, sums in moments.items() for name, tensor in sums.to_tensors().items()}


def moments_by_rate(tensors: Mapping[str, Tensor]) -> MomentsByRate:
    """Return the moments of each rate, from tensors with names such as ``0.5/fixed.norm1.count``."""
    by_rate: dict[float, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        rate, _, name = path.partition("/")
        by_rate.setdefault(float(rate), {})[name] = tensor
    return MomentsByRate({rate: Moments.from_tensors(named) for rate, named in by_rate.items()})


def unpack_moments(record: ArrayRecord, rate: float, sender: str = SERVER) -> Moments:
    """Return the moments of one rate; raise ``ReplyError`` if they are missing or invalid."""
    moments = entries_under(f"{rate}/", read_tensors(record, sender))
    if not moments:
        raise ReplyError(f"{sender} sent no moments of rate {rate}")
    try:
        return Moments.from_tensors(moments)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise ReplyError(f"{sender} sent moments of rate {rate} that cannot be used: {error}") from error
