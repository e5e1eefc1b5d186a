"""Folders of images, made here and tiny."""

import pytest
import torch

from heterofl_flwr.data import load_dataset
from heterofl_flwr.errors import DataError
from tests.data.files import SIZE, image_folder, png, write


def raw_pixels(dataset, split):
    """Undo the normalisation of images of one grey value each: black is -mean / sd, and every pixel has a value."""
    return (split.inputs - split.black[:, None, None])[:, 0, 0, 0]


def test_an_image_folder_has_its_folders_as_classes(tmp_path):
    data = load_dataset(str(image_folder(tmp_path)))
    assert data.train.inputs.shape == (4, 1, *SIZE)
    assert data.test.inputs.shape == (2, 1, *SIZE)
    assert data.train.targets.tolist() == [0, 0, 1, 1]
    assert data.test.targets.tolist() == [0, 1]
    assert (data.classes, data.augment, data.name) == (2, "none", str(tmp_path))
    assert data.train.inputs.is_contiguous()


def test_images_are_normalised_by_the_train_split_and_black_is_known(tmp_path):
    data = load_dataset(str(image_folder(tmp_path)))
    assert data.train.inputs.mean().item() == pytest.approx(0, abs=1e-6)
    assert data.train.inputs.std(correction=0).item() == pytest.approx(1)
    mean = (0 + 200 + 50 + 250) / 4 / 255
    pixels = raw_pixels(data, data.test)
    assert (pixels[0] / pixels[1]).item() == pytest.approx(100 / 150)
    assert torch.equal(data.train.black, data.test.black)
    assert (data.train.black / pixels[0]).item() == pytest.approx(-mean / (100 / 255))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_coloured_images_have_three_channels(tmp_path, mode):
    assert load_dataset(str(image_folder(tmp_path, mode))).train.inputs.shape == (4, 3, *SIZE)


def test_a_constant_channel_stays_finite(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "cat" / "1.png", png(7))
    assert load_dataset(str(tmp_path)).test.inputs.abs().max() == 0


def test_sources_are_read_once_and_left_as_they_are(tmp_path):
    before = {file: file.stat().st_mtime_ns for file in image_folder(tmp_path).rglob("*")}
    assert load_dataset(str(tmp_path)) is load_dataset(str(tmp_path))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("spoil", ["size", "deep", "broken", "damaged", "mixed"])
def test_images_that_do_not_fit_are_named(tmp_path, spoil):
    image_folder(tmp_path)
    content, message = {
        "size": (png(1, size=(9, 9)), r"image 1 has .* \(9, 9, 1\), the first one \(4, 5, 1\); .* scale them"),
        "deep": (png(1, "I;16"), r"found I;16.* pixels, expected 8 bits"),
        "damaged": (png(1).replace(b"IDAT", b"\x00\x00\x00I"), "image 1: this is no image that Pillow can read"),
        "broken": (b"not an image", "image 1: this is no image that Pillow can read"),
        "mixed": (png(1, "RGB"), r"\(4, 5, 3\), the first one \(4, 5, 1\)"),
    }[spoil]
    write(tmp_path / "train" / "cat" / "1.png", content)
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path))


def test_a_test_class_that_the_train_split_lacks_is_named(tmp_path):
    write(image_folder(tmp_path) / "test" / "cow" / "1.png", png(1))
    with pytest.raises(DataError, match="found cow, which the train split lacks; expected its classes cat, dog"):
        load_dataset(str(tmp_path))


def test_an_image_folder_without_test_images_is_refused(tmp_path):
    write(tmp_path / "train" / "cat" / "1.png", png(1))
    write(tmp_path / "test" / "1.png", png(1))
    with pytest.raises(DataError, match=r"test: there are no examples; expected images as .*test/<class>/"):
        load_dataset(str(tmp_path))


def test_an_image_folder_without_test_is_refused(tmp_path):
    write(tmp_path / "train" / "cat" / "1.png", png(1))
    with pytest.raises(DataError, match="has no test split, only train"):
        load_dataset(str(tmp_path))
