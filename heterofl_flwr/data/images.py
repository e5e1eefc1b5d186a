"""Decode images to one tensor of bytes."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from heterofl_flwr.data.raw import Raw
from heterofl_flwr.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm"})
"""Files that are taken for images."""

_GREY = frozenset({"1", "L"})
_DEEP = frozenset({"I", "F", "I;16", "I;16B", "I;16L"})


def decode_images(encoded: Iterable[bytes | Path], number: int, place: str) -> torch.Tensor:
    """Return ``number`` images of equal size as uint8 (number, channels, height, width).

    Grey images have one channel, all others become three: red, green, blue. A plain loop over Pillow reads MNIST's
    60,000 in two seconds; torchvision's decoder and threads are no faster for images that small.
    """
    images = np.empty((number, 0, 0, 0), dtype=np.uint8)
    for row, source in enumerate(encoded):
        pixels = _pixels(source, f"{place}, image {row}")
        if not row:
            images = np.empty((number, *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            raise DataError(
                f"{place}: image {row} has (height, width, channels) {pixels.shape}, the first one "
                f"{images.shape[1:]}; expected all alike: scale them to one size and colour mode first"
            )
        images[row] = pixels
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def read_image_folder(folder: Path) -> Raw:
    """Read ``<folder>/<class>/*.png`` (or another kind of image); the folders' names are the classes."""
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{folder}: there are no examples; expected images as {folder}/<class>/*.png")
    return Raw(decode_images(files, len(files), str(folder)), [file.parent.name for file in files], None, str(folder))


def _pixels(source: bytes | Path, place: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return one image (height, width, channels)."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode in _DEEP:
                raise DataError(f"{place}: found {image.mode} pixels, expected 8 bits a channel: convert the image")
            mode = "L" if image.mode in _GREY else "RGB"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{place}: this is no image that Pillow can read ({error})") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
