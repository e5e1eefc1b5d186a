"""Lists of arrays, which are all that the classic API carries: parameters, and behind them static batch norm moments.

Their order is that of the model's named parameters, and of its batch norm layers. Both sides build the model, so the
order says it all.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from flwr.common import NDArrays, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from torch import Tensor

from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.errors import ReplyError
from heterofl_flwr.messages import HEADER_BYTES
from heterofl_flwr.nn.moments import LayerMoments, Moments


def pack(tensors: Iterable[Tensor], more: NDArrays | None = None) -> Parameters:
    """Return tensors, and further arrays behind them, as the classic API sends them."""
    return ndarrays_to_parameters([*(tensor.detach().cpu().numpy() for tensor in tensors), *(more or [])])


def unpack(parameters: Parameters, sender: str, entries: Sequence[int] | None = None) -> NDArrays:
    """Return the arrays that came; refuse what is none or, before reading, takes far more than so many entries each."""
    if entries is not None:
        if len(parameters.tensors) != len(entries):
            raise ReplyError(f"{sender} sent {len(parameters.tensors)} arrays, expected {len(entries)}")
        for number, (own, data) in enumerate(zip(entries, parameters.tensors, strict=True)):
            if len(data) > (most := 8 * own + HEADER_BYTES):
                raise ReplyError(f"{sender} sent {len(data):,} bytes as array {number}, expected up to {most:,}")
    try:
        return parameters_to_ndarrays(parameters)
    except Exception as error:  # bytes that are no array make numpy raise almost anything
        raise ReplyError(f"{sender} sent arrays that cannot be read: {type(error).__name__}: {error}") from error


def named(names: Iterable[str], arrays: NDArrays, sender: str) -> dict[str, Tensor]:
    """Return arrays as tensors by name; refuse another number of them, or what torch does not know."""
    expected = list(names)
    if len(arrays) != len(expected):
        raise ReplyError(f"{sender} sent {len(arrays)} arrays, expected {len(expected)}")
    try:
        return {name: torch.from_numpy(array) for name, array in zip(expected, arrays, strict=True)}
    except TypeError as error:
        raise ReplyError(f"{sender} sent arrays that cannot be read: {error}") from error


def size_of(parameters: Parameters) -> int:
    """Return the bytes of arrays, as they travel."""
    return sum(len(tensor) for tensor in parameters.tensors)


def moments_to_arrays(moments: Mapping[float, Moments]) -> NDArrays:
    """Return static batch norm moments as arrays: for each rate and layer the count and both sums."""
    return [
        array
        for own in moments.values()
        for layer in own.layers.values()
        for array in (np.asarray(layer.count), layer.first.numpy(), layer.second.numpy())
    ]


def moments_from_arrays(
    arrays: NDArrays, kind: Variant, layers: Mapping[float, Sequence[str]], sender: str
) -> dict[float, Moments]:
    """Read what ``moments_to_arrays`` wrote for these layers by rate; refuse anything else."""
    places = [(rate, name) for rate, names in layers.items() for name in names]
    if len(arrays) != 3 * len(places):
        raise ReplyError(f"{sender} sent {len(arrays)} arrays of moments, expected {3 * len(places)}")
    found: dict[float, dict[str, LayerMoments]] = {rate: {} for rate in layers}
    try:
        for (rate, name), own in zip(places, zip(*[iter(arrays)] * 3, strict=True), strict=True):
            count, first, second = own
            found[rate][name] = LayerMoments(int(count), torch.from_numpy(first), torch.from_numpy(second))
        return {rate: Moments(kind, own) for rate, own in found.items()}
    except (ValueError, TypeError, OverflowError) as error:
        raise ReplyError(f"{sender} sent moments that cannot be used: {error}") from error
