"""``TensorArray``: Flower's ``Array`` around a tensor, which is serialised only when it leaves the process."""

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord
from torch import Tensor


class TensorArray(Array):
    """An ``Array`` that holds a tensor; the first use of ``data`` replaces the tensor by its bytes.

    The tensor shares its memory with the tensor of the caller and with those that readers get; do not change them.
    Pickling or copying gives a plain ``Array``.
    """

    __qualname__ = "Array"  # Flower serialises objects by the name of their class

    def __init__(self, tensor: Tensor) -> None:
        dtype = str(tensor.numpy().dtype)
        self.__dict__.update(dtype=dtype, shape=tuple(tensor.shape), stype="numpy.ndarray", tensor=tensor)

    @property
    def data(self) -> bytes:
        """The array as the bytes of a ``.npy`` file."""
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

    def __eq__(self, value: object) -> bool:
        """Whether an array of either class has equal content."""
        if not isinstance(value, Array):
            return NotImplemented
        names = ("dtype", "shape", "stype", "data")
        return self is value or all(getattr(self, name) == getattr(value, name) for name in names)

    __hash__ = None  # type: ignore[assignment]  # not hashable, like Array, because it is mutable

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


def pack_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return a record of tensors, which it shares if they are contiguous on the CPU; do not change them afterwards."""
    record = ArrayRecord()
    for name, tensor in tensors.items():
        record[name] = TensorArray(tensor.detach().cpu().contiguous())
    return record


def read_live(array: Array) -> Tensor | None:
    """Return the tensor that an array holds; None if it holds bytes."""
    tensor: Tensor | None = array.__dict__.get("tensor")
    return tensor


def array_size(array: Array) -> int:
    """Return the serialised size of an array in bytes, without serialising it."""
    return len(array.data) if read_live(array) is None else npy_size(array.dtype, tuple(array.shape))


@lru_cache(maxsize=4096)
def npy_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the size in bytes of an array's ``.npy`` file."""
    header = BytesIO()
    array = np.broadcast_to(np.zeros((), dtype), shape)  # a view, which allocates a single element
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.tell() + array.nbytes
