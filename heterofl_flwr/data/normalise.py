"""Normalisation of inputs by the mean and deviation of each channel or column."""

from dataclasses import dataclass

import torch
from torch import Tensor

from heterofl_flwr.common.errors import DataError


@dataclass(frozen=True, slots=True)
class Normal:
    """Mean and standard deviation of each image channel or table column.

    For images, both are computed from pixel values between 0 and 1.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def as_floats(inputs: Tensor) -> Tensor:
    """Return a copy that may be changed. Pixels in uint8 become float32 from 0 to 1; other inputs stay as they are."""
    kind = torch.float32 if inputs.dtype == torch.uint8 else inputs.dtype
    floats = inputs.to(kind, memory_format=torch.contiguous_format, copy=True)
    return floats.div_(255) if inputs.dtype == torch.uint8 else floats


def measure(inputs: Tensor) -> Normal:
    """Return the mean and standard deviation of each channel or column; a deviation of 0 is replaced by 1."""
    axes = [dim for dim in range(inputs.dim()) if dim != 1]
    deviation, mean = torch.std_mean(inputs, axes, correction=0)
    return Normal(tuple(mean.tolist()), tuple(torch.where(deviation > 0, deviation, 1.0).tolist()))


def normalise_(inputs: Tensor, normal: Normal, place: str) -> Tensor:
    """Normalise inputs in place; return, for each channel or column, the normalised value of 0.

    ``place`` is the source of the inputs, for errors.
    """
    mean, deviation = (torch.tensor(values, dtype=inputs.dtype) for values in (normal.mean, normal.deviation))
    if inputs.shape[1] != len(mean):
        raise DataError(f"{place}: found {inputs.shape[1]} channels, expected {len(mean)}")
    shape = (-1, *[1] * (inputs.dim() - 2))
    inputs.sub_(mean.view(shape)).div_(deviation.view(shape))
    return -mean / deviation
