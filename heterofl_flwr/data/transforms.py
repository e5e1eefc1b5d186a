"""Normalisation of inputs by the mean and deviation of each channel or column, and augmentation of images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from heterofl_flwr.common.errors import DataError

PADDING = 4
"""Maximum number of pixels that a random crop reaches beyond each side (CIFAR10)."""


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


def crop_flip(
    inputs: Tensor, generator: torch.Generator, black: Tensor | None = None, sizes: Sequence[int] | None = None
) -> Tensor:
    """Shift each image by up to 4 pixels, and flip it horizontally with probability 1/2.

    Parameters
    ----------
    inputs : Tensor
        Normalised images (number, channels, height, width).
    generator : torch.Generator
        Generator of the draws, on the CPU.
    black : Tensor | None
        Padding value of each channel: the normalised value of a black pixel. None pads with 0.
    sizes : Sequence[int] | None
        Sizes of the batches in ``inputs``; None for one batch. The draws are the same as in one call for each batch.
    """
    if inputs.dim() != 4:
        raise DataError(
            f"augment=crop-flip needs images of shape (number, channels, height, width), got inputs of "
            f"shape {tuple(inputs.shape)}: use augment=none"
        )
    number, channels, height, width = inputs.shape
    draws = [
        (
            torch.randint(2 * PADDING + 1, (2, size), generator=generator),
            torch.randint(2, (size, 1), generator=generator),
        )
        for size in ([number] if sizes is None else sizes)
    ]
    top, left = torch.cat([shift for shift, _ in draws], dim=1).to(inputs.device)
    mirrored = torch.cat([flip for _, flip in draws]).bool().to(inputs.device)  # (number, 1)
    padded = inputs.new_zeros(number, channels, height + 2 * PADDING, width + 2 * PADDING)
    if black is not None:
        padded += black[:, None, None]
    padded[:, :, PADDING:-PADDING, PADDING:-PADDING] = inputs
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (number, channels, top, left, height, width)
    shifted = windows[torch.arange(number, device=inputs.device), :, top, left]
    return torch.where(mirrored[..., None, None], shifted.flip(3), shifted)


Augment = Callable[[Tensor, torch.Generator, Tensor | None, Sequence[int] | None], Tensor]
"""Function of images, a generator, the padding value and the sizes of the images' batches; it returns new images."""

AugmentName = Literal["none", "crop-flip"]

AUGMENTS: Mapping[str, Augment] = MappingProxyType(
    {"none": lambda inputs, generator, black, sizes: inputs, "crop-flip": crop_flip}
)
"""Augmentations by name."""
