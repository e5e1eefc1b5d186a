"""Privacy: clipping, discrete Gaussian noise whose probabilities are exact, and the accountant."""

import math
import random
from decimal import Decimal

import numpy as np
import pytest
import torch

from heterofl_flwr.common.named_tensors import norm_between
from heterofl_flwr.core import Aggregation, Plan, gaussian_noise as gaussian
from heterofl_flwr.core.clipping import clipped, in_steps
from heterofl_flwr.core.gaussian_noise import DEVIATION, Keystream, draw
from heterofl_flwr.stages.privacy_accountant import ORDERS, divergences, epsilon

STATE = {"w": torch.zeros(4, 4), "rows.weight": torch.zeros(3, 4)}
WIDE, MIDDLE, NARROW = (Plan.between(STATE, {"w": (size, size), "rows.weight": (3, size)}) for size in (3, 2, 1))


def aggregated(state=STATE, value=1.0):
    """Return counts by hand: 10 clients hold the first entry, 3 the second, 1 the third and nobody the fourth."""
    aggregator = Aggregation(state, label_rows=["rows.weight"])
    for plan, clients in ((WIDE, 1), (MIDDLE, 2), (NARROW, 7)):
        for _ in range(clients):
            labels = [0, 2] if plan is MIDDLE else None
            sub = {name: torch.full(shape, value, dtype=state[name].dtype) for name, shape in plan.shapes.items()}
            aggregator.add(plan, sub, labels=labels)
    return aggregator


def summed(value=1.0):
    """Return the mean in steps, and who held what."""
    aggregator = aggregated({name: own.double() for name, own in STATE.items()}, value)
    return aggregator.result(), aggregator.holders


def test_the_aggregator_counts_who_held_each_entry_and_row():
    held = aggregated().holders
    assert held("w").tolist() == [[10, 3, 1, 0], [3, 3, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert held("rows.weight").tolist() == [[10, 3, 1, 0], [8, 1, 1, 0], [10, 3, 1, 0]]


def test_noise_on_an_entry_is_that_on_the_sum_over_its_holders():
    mean, held = summed(value=1000.0)
    step, stream = 0.6 / DEVIATION, Keystream(KEY)
    found = [gaussian.released(STATE, mean, held, step, stream) for _ in range(1500)]
    for name in STATE:
        draws = torch.stack([own[name] for own in found]) - 1000.0 * step * (held(name) > 0)
        for clients in (10, 8, 3, 1):
            own = draws[:, held(name) == clients]
            if own.numel():
                assert own.std().item() == pytest.approx(0.6 / clients, rel=4 / math.sqrt(2 * own.numel()))
                assert own.mean().item() == pytest.approx(0, abs=4 * 0.6 / clients / math.sqrt(own.numel()))
                far = (own.abs() > 2 * 0.6 / clients).double().mean().item()
                assert far == pytest.approx(0.0455, abs=4 * math.sqrt(0.0455 / own.numel()))
        assert not draws[:, held(name) == 0].any()


def test_sums_and_noise_lie_on_the_grid():
    """So no bit of the result says how an entry was rounded on its way: see Mironov, 2012."""
    mean, held = summed(value=3.0)
    old = {name: own.double() for name, own in STATE.items()}
    step = 2.0**-30
    for name, own in gaussian.released(old, mean, held, step, Keystream(KEY)).items():
        total = (own * held(name)) / step
        torch.testing.assert_close(total, total.round(), rtol=1e-15, atol=0)
        assert torch.equal(
            gaussian.noised((mean[name] * held(name)).round(), 1.0, Keystream(KEY)) % 1, torch.zeros_like(own)
        )


@pytest.mark.parametrize("scale", [1e-3, 0.999, 1.0, 1.001, 1e15])
def test_rounding_never_makes_a_vector_longer_than_the_bound(scale):
    """On the grid, nearest values would be longer by up to half a step times the root of the number of entries."""
    step = 2.0**-10
    generator = torch.Generator().manual_seed(0)
    vector = {"w": torch.randn(100_000, generator=generator).double(), "b": torch.full((9,), 0.75 * step).double()}
    length = math.hypot(*(own.norm().item() for own in vector.values()))
    short = in_steps({name: own * scale / length for name, own in vector.items()}, 1.0, step)
    assert all(torch.equal(own, own.round()) for own in short.values())
    assert sum((own.long() ** 2).sum().item() for own in short.values()) <= round(step**-2)  # in whole numbers


def test_a_longer_change_is_shortened_and_a_shorter_one_left():
    before = {"w": torch.zeros(2), "b": torch.ones(1)}
    after = {"w": torch.tensor([3.0, 0.0]), "b": torch.tensor([5.0])}
    assert norm_between(after, before) == 5
    short = clipped(before, after, 2.5)
    assert norm_between(short, before) == pytest.approx(2.5, rel=1e-5)
    assert norm_between(short, before) <= 2.5
    torch.testing.assert_close(short["w"], torch.tensor([1.5, 0.0]))
    assert clipped(before, after, 5.0) == after


KEY = bytes(range(32))
SIZE = torch.Size([1000, 1000])


@pytest.fixture(scope="module")
def noise():
    return draw(Keystream(KEY), SIZE)


def test_noise_is_whole_numbers_of_a_gaussian_distribution(noise):
    """Kolmogorov and Smirnov's distance, at the level of one in a hundred; the key is fixed."""
    assert torch.equal(noise, noise.round())
    low = (noise.long() & 7).flatten().bincount().double() / noise.numel()
    torch.testing.assert_close(low, torch.full((8,), 1 / 8).double(), rtol=0.01, atol=0)
    ordered = (noise / DEVIATION).flatten().sort().values
    number = len(ordered)
    expected = torch.special.ndtr(ordered)
    steps = torch.arange(number + 1) / number
    distance = max((steps[1:] - expected).max().item(), (expected - steps[:-1]).max().item())
    assert distance < 1.63 / number**0.5


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


def test_noise_depends_on_a_key_of_the_operating_system(monkeypatch, noise):
    size, state = torch.Size([50]), (torch.get_rng_state(), random.getstate(), repr(np.random.get_state()))  # noqa: NPY002
    assert torch.equal(draw(Keystream(KEY), SIZE), noise)
    assert not torch.equal(draw(Keystream(KEY[::-1]), SIZE), noise)
    assert not torch.equal(draw(Keystream(), size), draw(Keystream(), size))
    monkeypatch.setattr("secrets.token_bytes", lambda number: KEY[:number])
    assert torch.equal(draw(Keystream(), size), draw(Keystream(KEY), size))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), repr(np.random.get_state())) == state[1:]  # noqa: NPY002


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2**15 + 1,)])
def test_any_shape_is_filled(shape):
    found = draw(Keystream(KEY), torch.Size(shape))
    assert found.shape == shape
    assert found.dtype == torch.float64
    assert (found != 0).all()


CASES = [(0.3, 1), (1.5, 100), (4.0, 2250)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("noise", "releases"), CASES)
@pytest.mark.parametrize("delta", [1e-3, 1e-8])
def test_an_accepted_library_finds_the_same_at_the_same_orders(noise, releases, delta):
    rdp = pytest.importorskip("opacus.accountants.analysis.rdp")
    spent = rdp.compute_rdp(q=1.0, noise_multiplier=noise, steps=releases, orders=ORDERS)
    assert divergences(noise, releases) == pytest.approx(spent.tolist(), rel=1e-12)
    expected, _ = rdp.get_privacy_spent(orders=ORDERS, rdp=spent, delta=delta)
    assert epsilon(divergences(noise, releases), delta) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("deviation", "order", "shift"), [(0.7, 1.1, 1), (0.7, 7.3, 3), (2.0, 2.5, 1), (2.0, 7.3, 3)])
def test_a_divergence_bounds_that_of_the_discrete_gaussian(deviation, order, shift):
    """By its definition, over whole numbers; what is added up is a vector of them."""
    values = range(-200, 201)

    logs = {value: -(value**2) / (2 * deviation**2) for value in range(-210, 211)}
    total = math.fsum(math.exp(logs[value]) for value in values)
    terms = [math.exp(order * logs[value - shift] + (1 - order) * logs[value]) for value in values]
    found = math.log(math.fsum(terms) / total) / (order - 1)
    (bound,) = divergences(deviation / shift, 1, [order])
    assert found <= bound * (1 + 1e-9)


@pytest.mark.parametrize(("noise", "releases"), [(0.3, 2000), (1.0, 10), (8.0, 500)])
def test_the_orders_are_enough_for_strong_and_weak_noise(noise, releases):
    orders = [1 + 2 ** (step / 64) for step in range(-640, 1281)]
    best = epsilon(divergences(noise, releases, orders), 1e-5, orders)
    assert best <= epsilon(divergences(noise, releases), 1e-5) < 1.002 * best
