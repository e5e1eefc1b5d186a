"""Random changes of training images."""

import pytest
import torch
from torchvision.transforms import functional as F

from heterofl_flwr.data.augment import PADDING, crop_flip
from heterofl_flwr.errors import DataError

BLACK = torch.tensor([-1.0, -2.0, -3.0])


def images(number: int, size: tuple[int, int] = (6, 5)) -> torch.Tensor:
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(3))


def image_by_image(inputs, top, left, mirrored):
    """Return the slow twin: torchvision's own crop and flip, one image after the other, on normalised pixels."""
    height, width = inputs.shape[2:]
    changed = []
    for image, above, beside, flip in zip(inputs, top, left, mirrored, strict=True):
        shifted = F.pad(image - BLACK[:, None, None], PADDING) + BLACK[:, None, None]
        cut = F.crop(shifted, int(above), int(beside), height, width)
        changed.append(F.hflip(cut) if flip else cut)
    return torch.stack(changed)


def test_equals_torchvision_image_by_image():
    inputs = images(40)
    generator = torch.Generator().manual_seed(1)
    top, left = torch.randint(2 * PADDING + 1, (2, 40), generator=generator)
    mirrored = torch.randint(2, (40,), generator=generator)
    expected = image_by_image(inputs, top, left, mirrored)
    torch.testing.assert_close(crop_flip(inputs, torch.Generator().manual_seed(1), BLACK), expected)


def test_padding_is_zero_without_black():
    inputs = torch.ones(50, 1, 2, 2)
    changed = crop_flip(inputs, torch.Generator().manual_seed(0))
    assert set(changed.unique().tolist()) == {0.0, 1.0}
    assert (inputs == 1).all()


def test_inputs_that_are_no_images_raise_an_error():
    with pytest.raises(DataError, match=r"augment=crop-flip needs images .* got inputs of shape \(2, 3\)"):
        crop_flip(torch.zeros(2, 3), torch.Generator())
