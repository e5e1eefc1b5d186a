"""Tensors in the records of messages: parameters, their changes, and moments."""

import io
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from reprlib import repr as shown

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from heterofl_flwr.core.exchanged import exchanged_dtype
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.reply_checks import check_names
from heterofl_flwr.errors import ReplyError
from heterofl_flwr.messages import ARRAYS, CHANGES, MASKED, SCALES, SERVER
from heterofl_flwr.nn.moments import Moments

UPLOAD_RECORDS: Mapping[str, tuple[str, ...]] = {
    "float32": (ARRAYS,),
    "float16": (CHANGES,),
    "int8": (CHANGES, SCALES),
    MASKED: (MASKED,),
}
"""The records that carry parameters in each form of a reply."""

HEADER_BYTES = 1024
"""More than the header of any array that a client of ours sends."""


def move_to_record(state: dict[str, Tensor]) -> ArrayRecord:
    """Return tensors as a record; each is removed from ``state`` when its bytes are made, to hold none twice."""
    record = ArrayRecord()
    for name in list(state):
        record[name] = Array(state.pop(name))
    return record


def check_sizes(record: ArrayRecord, entries: Mapping[str, int], sender: str) -> None:
    """Reject a record with an array larger than its entries in double precision, before anything of it is read."""
    for name, array in record.items():
        most = 8 * entries.get(name, 0) + HEADER_BYTES
        if len(array.data) > most:
            raise ReplyError(f"{sender} sent {len(array.data):,} bytes as {name[:80]!r}, expected up to {most:,}")


def count_bytes(arrays: ArrayRecord) -> int:
    """Return the bytes of a record's arrays, as they travel."""
    return sum(len(array.data) for array in arrays.values())


def count_packed(tensor: Tensor) -> int:
    """Return the bytes that a tensor has in a record, those of a ``.npy`` file, without packing it."""
    scalar = torch.zeros((), dtype=exchanged_dtype(tensor)).numpy()
    array, header = np.broadcast_to(scalar, tuple(tensor.shape)), io.BytesIO()  # which needs no memory of that size
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.tell() + array.nbytes


@contextmanager
def reading_arrays(sender: str) -> Iterator[None]:
    """Reject as unreadable whatever makes the reading of arrays fail."""
    try:
        with warnings.catch_warnings():
            # numpy's on odd headers, and torch's that what it sees must not be written to
            warnings.simplefilter("ignore", UserWarning)
            yield
    except Exception as error:  # bytes that are no array make numpy and torch raise almost anything
        raise ReplyError(f"{sender} sent arrays that cannot be read: {type(error).__name__}: {error}") from error


def read_tensors(record: ArrayRecord, sender: str = SERVER) -> dict[str, Tensor]:
    """Return the tensors of a record, to be read only: they lie where its bytes do. Reject one that is no array."""
    with reading_arrays(sender):
        return {name: _read_array(array) for name, array in record.items()}


def _read_array(array: Array) -> Tensor:
    expected = "numpy.ndarray"  # how Flower names the only form in which it serialises arrays
    if array.stype != expected:
        raise ValueError(f"serialised as {array.stype!r}, expected {expected!r}")
    return torch.from_numpy(read_npy(array.data))


def read_npy(data: bytes) -> np.ndarray:
    """Return the array in the bytes of a ``.npy`` file, to be read only: it lies where they do.

    ``numpy.load`` would take archives of arrays too, and what follows an array.
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
    """Return what a client sends of its parameters as records, by their names."""
    records = {UPLOAD_RECORDS[form][0]: ArrayRecord(dict(tensors))}
    return records if scales is None else {**records, SCALES: ArrayRecord({SCALES: scales})}


def unpack_trained(
    records: Mapping[str, ArrayRecord], form: str, plan: Plan, sender: str
) -> tuple[Mapping[str, Tensor], Tensor | None]:
    """Return the tensors of a reply: parameters, or what they changed by and the scales of these.

    Before anything is read, other records than those of its form are rejected, other names, and far more bytes than
    those of its plan.
    """
    expected = UPLOAD_RECORDS[form]
    if set(records) != set(expected):
        raise ReplyError(f"{sender} sent records {shown(list(records))}, expected {' and '.join(expected)} alone")
    sizes = {name: math.prod(shape) for name, shape in plan.shapes.items()}
    if form == MASKED:  # one vector, of which a stage knows what it is made of
        sizes = {MASKED: plan.parameters}
    else:
        check_names(plan, records[expected[0]])
    check_sizes(records[expected[0]], sizes, sender)
    tensors = read_tensors(records[expected[0]], sender)
    if SCALES not in expected:
        return tensors, None
    if list(records[SCALES]) != [SCALES]:
        raise ReplyError(f"{sender} sent {shown(list(records[SCALES]))} in record {SCALES}, expected {SCALES} alone")
    check_sizes(records[SCALES], {SCALES: plan.parameters}, sender)
    return tensors, read_tensors(records[SCALES], sender)[SCALES]


def pack_moments(moments: Mapping[float, Moments]) -> ArrayRecord:
    """Return static batch norm moments by rate as one record."""
    return ArrayRecord(moment_tensors(moments))


def moment_tensors(moments: Mapping[float, Moments]) -> dict[str, Tensor]:
    """Return static batch norm moments by rate as tensors, with the rate and a slash before each name."""
    return {f"{rate}/{name}": tensor for rate, own in moments.items() for name, tensor in own.to_tensors().items()}


def unpack_moments(record: ArrayRecord, rate: float, sender: str = SERVER) -> Moments:
    """Return the moments of one rate that a record holds; reject a record that lacks them."""
    prefix = f"{rate}/"
    tensors = read_tensors(record, sender)
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not own:
        raise ReplyError(f"{sender} sent no moments of rate {rate}")
    try:
        return Moments.from_tensors(own)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise ReplyError(f"{sender} sent moments of rate {rate} that cannot be used: {error}") from error
