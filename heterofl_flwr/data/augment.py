"""Data augmentation: random changes of training images, a batch at a time."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from heterofl_flwr.common.errors import DataError

PADDING = 4
"""Pixels that a random crop may reach beyond each side (CIFAR10)."""


def crop_flip(
    inputs: Tensor, generator: torch.Generator, black: Tensor | None = None, sizes: Sequence[int] | None = None
) -> Tensor:
    """Return each image shifted by up to 4 pixels and, with even chance, mirrored.

    The draws have the distribution of torchvision's ``RandomCrop(size, padding=4)`` and ``RandomHorizontalFlip()``
    applied image by image.

    Parameters
    ----------
    inputs : Tensor
        Images (number, channels, height, width), normalised. They stay as they are.
    generator : torch.Generator
        Where the draws come from; it lives on the CPU.
    black : Tensor | None
        The padding's value for each channel, as torchvision pads before it normalises. None pads with 0.
    sizes : Sequence[int] | None
        Sizes of the batches of which the images are made: each draws as it does alone. None: a single batch.
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
    top, x_start = torch.cat([shift for shift, _ in draws], dim=1).to(inputs.device)
    mirrored = torch.cat([flip for _, flip in draws]).to(inputs.device)
    rows = top[:, None] + torch.arange(height, device=inputs.device)  # (number, height)
    across = torch.arange(width, device=inputs.device)
    columns = x_start[:, None] + torch.where(mirrored.bool(), across.flip(0), across)  # (number, width)
    image = torch.arange(number, device=inputs.device)[:, None, None, None]
    channel = torch.arange(channels, device=inputs.device)[:, None, None]
    padded = inputs.new_zeros(number, channels, height + 2 * PADDING, width + 2 * PADDING)
    if black is not None:
        padded += black[:, None, None]
    padded[:, :, PADDING:-PADDING, PADDING:-PADDING] = inputs
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


Augment = Callable[[Tensor, torch.Generator, Tensor | None, Sequence[int] | None], Tensor]
"""From images, a source of draws, the value of black and the sizes of their batches to new images."""

AugmentName = Literal["none", "crop-flip"]

AUGMENTS: Mapping[str, Augment] = MappingProxyType(
    {"none": lambda inputs, generator, black, sizes: inputs, "crop-flip": crop_flip}
)
"""The changes by name."""
