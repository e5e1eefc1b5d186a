"""Lists of arrays, which are all that the classic API carries: parameters, and behind them static batch norm moments.

Their order is that of the model's named parameters, and of its batch norm layers. Both sides build the model, so the
order says it all.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from flwr.common import NDArrays, Parameters, ndarrays_to_parameters
from torch import Tensor

from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.errors import ReplyError
from heterofl_flwr.messages import SERVER
from heterofl_flwr.nn.moments import LayerMoments, Moments
from heterofl_flwr.packing import HEADER_BYTES, read_npy, reading_arrays


def pack(tensors: Iterable[Tensor], more: Sequence[np.ndarray] = ()) -> Parameters:
    """Return tensors, and further arrays behind them, as the classic API sends them."""
    return ndarrays_to_parameters([*(tensor.detach().cpu().numpy() for tensor in tensors), *more])


def unpack(parameters: Parameters, sender: str = SERVER, entries: Sequence[int] | None = None) -> NDArrays:
    """Return arrays; reject, before reading, another number of them or far more than so many ``entries`` each."""
    if entries is not None:
        _check_number(parameters.tensors, len(entries), sender)
        for number, (own, data) in enumerate(zip(entries, parameters.tensors, strict=True)):
            if len(data) > (most := 8 * own + HEADER_BYTES):
                raise ReplyError(f"{sender} sent {len(data):,} bytes as array {number}, expected up to {most:,}")
    with reading_arrays(sender):
        return [read_npy(data).copy() for data in parameters.tensors]


def name_arrays(names: Iterable[str], arrays: NDArrays, sender: str = SERVER) -> dict[str, Tensor]:
    """Return arrays as tensors by name; reject another number of them, or what torch does not know."""
    expected = list(names)
    _check_number(arrays, len(expected), sender)
    try:
        return {name: torch.from_numpy(array) for name, array in zip(expected, arrays, strict=True)}
    except (TypeError, ValueError) as error:  # ValueError: of another byte order
        raise ReplyError(f"{sender} sent arrays that cannot be read: {error}") from error


def _check_number(arrays: Sequence[object], expected: int, sender: str, of: str = "") -> None:
    if len(arrays) != expected:
        raise ReplyError(f"{sender} sent {len(arrays)} arrays{of}, expected {expected}")


def count_bytes(parameters: Parameters) -> int:
    """Return the bytes of arrays, as they travel."""
    return sum(map(len, parameters.tensors))


def moments_to_arrays(moments: Mapping[float, Moments]) -> NDArrays:
    """Return static batch norm moments as arrays: for each rate and layer the count and both sums."""
    layers = [layer for own in moments.values() for layer in own.layers.values()]
    return [array for own in layers for array in (np.asarray(own.count), own.first.numpy(), own.second.numpy())]


def moments_from_arrays(
    arrays: NDArrays, kind: Variant, layers: Mapping[float, Sequence[str]], sender: str = SERVER
) -> dict[float, Moments]:
    """Read what ``moments_to_arrays`` wrote for these layers by rate; reject anything else."""
    _check_number(arrays, 3 * sum(map(len, layers.values())), sender, " of moments")
    triples = zip(*[iter(arrays)] * 3, strict=True)
    try:
        return {
            rate: Moments(
                kind,
                {
                    name: LayerMoments(int(count), _read_sum(first), _read_sum(second))
                    for name, (count, first, second) in zip(names, triples, strict=False)
                },
            )
            for rate, names in layers.items()
        }
    except (ValueError, TypeError, OverflowError) as error:
        raise ReplyError(f"{sender} sent moments that cannot be used: {error}") from error


def _read_sum(array: np.ndarray) -> Tensor:
    if array.dtype.kind != "f":
        raise TypeError(f"sums of moments are {array.dtype}, expected float64")
    return torch.from_numpy(array).double()
