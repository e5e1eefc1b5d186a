"""Turned images."""

import pytest
import torch

from heterofl_flwr.data import Dataset, Split, load_dataset, split_dataset
from heterofl_flwr.data.splits import rotated
from heterofl_flwr.errors import ConfigError, DataError


@pytest.fixture
def split():
    inputs = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    return Split(inputs, torch.arange(6), black=torch.tensor([-1.0, -2.0]))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_move_pixels(split, quarters):
    turned = rotated(split, 90.0 * quarters)
    torch.testing.assert_close(turned.inputs, split.inputs.rot90(quarters, (2, 3)), atol=1e-4, rtol=0)
    assert turned.targets is split.targets


@pytest.mark.parametrize("degrees", [0.0, 360.0, -720.0])
def test_full_turns_change_nothing(split, degrees):
    assert rotated(split, degrees) is split


def test_corners_become_black(split):
    turned = rotated(split, 45.0).inputs
    assert turned[:, 0, 0, 0].tolist() == [-1.0] * 6
    assert turned[:, 1, 0, 0].tolist() == [-2.0] * 6


def test_each_client_turns_its_own_images_by_one_step_more():
    data = load_dataset("digits")
    parts = split_dataset(data, "rotated-90", 4, seed=1)
    still = split_dataset(data, "iid", 4, seed=1)
    for client in range(4):
        for mine, other in zip(
            parts.of(client, data.train, data.test), still.of(client, data.train, data.test), strict=True
        ):
            expected = other.inputs.rot90(client, (2, 3))
            torch.testing.assert_close(mine.inputs, expected, atol=1e-4, rtol=0)
            assert torch.equal(mine.targets, other.targets)


@pytest.mark.parametrize("kind", ["rotated-90", "iid"])
def test_each_example_is_seen_as_by_the_client_that_has_it(kind):
    data = load_dataset("digits")
    parts = split_dataset(data, kind, 4, seed=1)
    rows = torch.cat([parts.test[client][:3] for client in (2, 0, 3)])
    expected = torch.cat([parts.of(client, data.train, data.test)[1].inputs[:3] for client in (2, 0, 3)])
    before = data.test.inputs.clone()
    seen = parts.seen(data.test, rows, parts.test)
    torch.testing.assert_close(seen.inputs, expected, atol=1e-6, rtol=0)
    assert torch.equal(seen.targets, data.test.targets[rows])
    assert torch.equal(data.test.inputs, before)


def test_numbers_cannot_be_turned():
    split = Split(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    data = Dataset("table", split, split, classes=1)
    with pytest.raises(DataError, match=r"needs images .* got inputs of shape \(2, 3\)"):
        split_dataset(data, "rotated-15", 2, seed=0).of(1, split, split)


def test_an_angle_is_a_number():
    with pytest.raises(ConfigError, match="rotated-<degrees>"):
        split_dataset(load_dataset("digits"), "rotated-x", 2, seed=0)
