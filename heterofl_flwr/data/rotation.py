"""Turn images: clients whose data differ in features, not in classes."""

from dataclasses import replace

from torch import Tensor

from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import DataError


def rotated(split: Split, degrees: float) -> Split:
    """Return a split whose images are turned counter-clockwise about their centre; the corners become black."""
    if split.inputs.dim() != 4:
        raise DataError(
            f"a rotated split needs images of shape (number, channels, height, width), got inputs of shape "
            f"{tuple(split.inputs.shape)}: use another split"
        )
    return split if degrees % 360 == 0 else replace(split, inputs=_turned(split, degrees))


def _turned(split: Split, degrees: float) -> Tensor:
    # It takes a second to load.
    from torchvision.transforms.v2 import InterpolationMode, functional  # type: ignore[import-untyped]

    fill = [0.0] * split.inputs.shape[1] if split.black is None else split.black.tolist()
    turned: Tensor = functional.rotate(split.inputs, degrees, InterpolationMode.BILINEAR, fill=fill)
    return turned
