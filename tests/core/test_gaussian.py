"""Discrete Gaussian noise: whose probabilities are exact, and that nobody can compute again."""

import random
from decimal import Decimal

import numpy as np
import pytest
import torch

from heterofl_flwr.core import noise as gaussian
from heterofl_flwr.core.noise import DEVIATION, Keystream, draw

KEY = bytes(range(32))
SIZE = torch.Size([1000, 1000])


@pytest.fixture(scope="module")
def noise():
    return draw(Keystream(KEY), SIZE)


def test_values_are_whole_numbers(noise):
    assert torch.equal(noise, noise.round())
    low = (noise.long() & 7).flatten().bincount().double() / noise.numel()
    torch.testing.assert_close(low, torch.full((8,), 1 / 8).double(), rtol=0.01, atol=0)


def test_values_have_the_distribution_of_a_gaussian(noise):
    """Kolmogorov and Smirnov's distance, at the level of one in a hundred; the key is fixed."""
    ordered = (noise / DEVIATION).flatten().sort().values
    number = len(ordered)
    expected = torch.special.ndtr(ordered)
    steps = torch.arange(number + 1) / number
    distance = max((steps[1:] - expected).max().item(), (expected - steps[:-1]).max().item())
    assert distance < 1.63 / number**0.5


@pytest.mark.parametrize(("deviations", "share"), [(1, 0.317311), (2, 0.0455003), (3, 0.0026998), (4, 6.3342e-5)])
def test_tails_are_those_of_a_gaussian(noise, deviations, share):
    number = noise.numel()
    found = (noise.abs() > deviations * DEVIATION).sum().item()
    assert found == pytest.approx(number * share, abs=4 * (number * share) ** 0.5)


def test_the_standard_deviation_and_the_fourth_moment_are_right(noise):
    scaled = noise / DEVIATION
    assert scaled.mean().item() == pytest.approx(0, abs=0.003)
    assert scaled.std().item() == pytest.approx(1, rel=0.003)
    assert (scaled**4).mean().item() == pytest.approx(3, rel=0.01)


def test_the_table_is_right_far_into_the_tail():
    """Against decimal arithmetic: the share of each coarse part, down to one in 2**70."""
    tails, cells = gaussian._table()
    reached = [Decimal(1), *(Decimal(float(tail)) for tail in tails[::-1]), Decimal(0)]
    weights = [(-Decimal(value**2) / (2 * gaussian._COARSE**2)).exp() for value in range(40 * gaussian._COARSE)]
    total = sum(weights)
    for value, weight in enumerate(weights):
        expected = weight / total
        if expected < Decimal(2) ** -70:
            break
        assert abs(reached[value] - reached[value + 1] - expected) < expected * Decimal(2) ** -48
    assert value > 9 * gaussian._COARSE
    # A cell stands for a coarse part only where all of it lies between two of these probabilities.
    for cell, coarse in enumerate(cells.tolist()):
        if coarse != gaussian._SPLIT:
            assert reached[coarse + 1] <= Decimal(cell) / 2**16
            assert Decimal(cell + 1) / 2**16 <= reached[coarse]
    assert np.mean(cells == gaussian._SPLIT) < 0.01


class Fixed(Keystream):
    """A stream whose words are known."""

    def __init__(self, *words):
        self._words = [np.array(own, dtype=np.uint64) for own in words]

    def words(self, number):
        found = self._words.pop(0)
        assert len(found) == number
        return found


def test_zero_comes_once_and_not_once_with_each_sign():
    top, sign = 0xFFFF << 48, 1 << 47  # the last cell stands for a coarse part of 0
    values, kept = gaussian._proposed(Fixed([top | 5, top | sign | 5], [], []), 2)
    assert values.tolist() == [0, 0]
    assert kept.tolist() == [True, False]


@pytest.mark.parametrize(("word", "kept"), [(0, False), (2**63, True)])
def test_in_doubt_further_bits_decide(word, kept):
    """The largest fine part is kept with exp(-1/512), so of 2**27 shares this one is partly above and partly below."""
    share = int((1 - np.exp(-((1 - 2.0**-20) ** 2) / 512)) * 2**27)
    first = 0xFFFF << 48 | (2**20 - 1) << 27 | share
    exact = (1 - np.exp(-((1 - 2.0**-20) ** 2) / 512)) * 2**27 - share
    words = [int(exact * 2**64) // 2] if not kept else [int((1 + exact) / 2 * 2**64)]
    values, found = gaussian._proposed(Fixed([first], [], words), 1)
    assert values.tolist() == [2**20 - 1]
    assert found.tolist() == [kept]


def test_a_key_gives_its_own_noise_and_the_operating_system_gives_the_key(monkeypatch, noise):
    size = torch.Size([50])
    assert torch.equal(draw(Keystream(KEY), SIZE), noise)
    assert not torch.equal(draw(Keystream(KEY[::-1]), SIZE), noise)
    assert not torch.equal(draw(Keystream(), size), draw(Keystream(), size))
    monkeypatch.setattr("secrets.token_bytes", lambda number: KEY[:number])
    assert torch.equal(draw(Keystream(), size), draw(Keystream(KEY), size))


def test_no_generator_of_a_library_is_read_or_changed():
    noises = []
    for _ in range(2):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global generator is what is looked at
        noises.append(draw(Keystream(), torch.Size([50])))
        drawn = (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        assert drawn == (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
    assert not torch.equal(*noises)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2**15 + 1,)])
def test_any_shape_is_filled(shape):
    found = draw(Keystream(KEY), torch.Size(shape))
    assert found.shape == shape
    assert found.dtype == torch.float64
    assert (found != 0).all()
