"""Splits and data sets, what they refuse, and random changes of training images."""

import pytest
import torch
from torchvision.transforms import functional as F

from heterofl_flwr.common.errors import DataError
from heterofl_flwr.data import Dataset, Split
from heterofl_flwr.data.transforms import PADDING, crop_flip


def split(number: int = 4, classes: int = 2, shape: tuple[int, ...] = (3,)) -> Split:
    return Split(torch.zeros(number, *shape), torch.arange(number) % classes)


NO_CLASS = r"targets of the train split .* expected class numbers from 0 to 1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"test": split(0)}, "mine: the test split is empty"),
        ({"train": Split(torch.zeros(1, 3), torch.tensor([2]))}, NO_CLASS),
        ({"test": split(shape=(4,))}, r"train split has shape \(3,\), one of the test split \(4,\)"),
        ({"names": ("a",)}, "mine: there are 1 names, expected 2"),
        ({"columns": ("a", "b")}, "mine: there are 2 columns, expected 3"),
    ],
)
def test_what_is_no_data_set_raises_an_error(fields, message):
    with pytest.raises(DataError, match=message):
        Dataset(**{"name": "mine", "train": split(), "test": split(), "classes": 2, **fields})


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
