"""Clipping keeps a change's direction; noise is that of the number of clients that held an entry."""

import math

import pytest
import torch

from heterofl_flwr.core import Aggregator, Plan
from heterofl_flwr.core.noise import DEVIATION, Keystream, clipped, in_steps, noised, released
from heterofl_flwr.core.replies import norm_between

STATE = {"w": torch.zeros(4, 4), "rows.weight": torch.zeros(3, 4)}
WIDE, MIDDLE, NARROW = (Plan.between(STATE, {"w": (size, size), "rows.weight": (3, size)}) for size in (3, 2, 1))
KEY = bytes(range(32))


def aggregated(state=STATE, value=1.0):
    """Return counts by hand: 10 clients hold the first entry, 3 the second, 1 the third and nobody the fourth."""
    aggregator = Aggregator(state, label_rows=["rows.weight"])
    for plan, clients in ((WIDE, 1), (MIDDLE, 2), (NARROW, 7)):
        for _ in range(clients):
            labels = [0, 2] if plan is MIDDLE else None
            sub = {name: torch.full(shape, value, dtype=state[name].dtype) for name, shape in plan.shapes.items()}
            aggregator.add(plan, sub, labels=labels)
    return aggregator


def summed(value=1.0):
    """Return the mean in steps, and who held what."""
    aggregator = aggregated({name: own.double() for name, own in STATE.items()}, value)
    return aggregator.result(), aggregator.held


def test_the_aggregator_counts_who_held_each_entry_and_row():
    held = aggregated().held
    assert held("w").tolist() == [[10, 3, 1, 0], [3, 3, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert held("rows.weight").tolist() == [[10, 3, 1, 0], [8, 1, 1, 0], [10, 3, 1, 0]]


def test_noise_on_an_entry_is_that_on_the_sum_over_the_clients_that_held_it():
    mean, held = summed(value=1000.0)
    step, stream = 0.6 / DEVIATION, Keystream(KEY)
    found = [released(STATE, mean, held, step, stream) for _ in range(10000)]
    for name in STATE:
        draws = torch.stack([own[name] for own in found]) - 1000.0 * step * (held(name) > 0)
        for clients in (10, 8, 3, 1):
            own = draws[:, held(name) == clients]
            if own.numel():
                assert own.std().item() == pytest.approx(0.6 / clients, rel=0.02)
                assert own.mean().item() == pytest.approx(0, abs=4 * 0.6 / clients / math.sqrt(own.numel()))
                far = (own.abs() > 2 * 0.6 / clients).double().mean().item()
                assert far == pytest.approx(0.0455, abs=4 * math.sqrt(0.0455 / own.numel()))
        assert not draws[:, held(name) == 0].any()


def test_sums_and_noise_lie_on_the_grid():
    """So no bit of the result says how an entry was rounded on its way: see Mironov, 2012."""
    mean, held = summed(value=3.0)
    old = {name: own.double() for name, own in STATE.items()}
    step = 2.0**-30
    for name, own in released(old, mean, held, step, Keystream(KEY)).items():
        total = (own * held(name)) / step
        torch.testing.assert_close(total, total.round(), rtol=1e-15, atol=0)
        assert torch.equal(noised((mean[name] * held(name)).round(), 1.0, Keystream(KEY)) % 1, torch.zeros_like(own))


def test_a_sum_in_steps_is_exact_in_any_order():
    vectors = [in_steps({"w": torch.randn(50).double() * scale}, 1.0, 2.0**-24 / 3) for scale in (1e-6, 1, 1e6)]
    one, two, three = (own["w"] for own in vectors)
    assert torch.equal((one + two) + three, one + (two + three))
    assert torch.equal((one + two + three) - two - three, one)


@pytest.mark.parametrize("scale", [1e-3, 0.999, 1.0, 1.001, 1e6, 1e15])
def test_rounding_never_makes_a_vector_longer_than_the_bound(scale):
    """On the grid, nearest values would be longer by up to half a step times the root of the number of entries."""
    step = 2.0**-10
    generator = torch.Generator().manual_seed(0)
    vector = {"w": torch.randn(100_000, generator=generator).double(), "b": torch.full((9,), 0.75 * step).double()}
    length = math.hypot(*(own.norm().item() for own in vector.values()))
    short = in_steps({name: own * scale / length for name, own in vector.items()}, 1.0, step)
    assert all(torch.equal(own, own.round()) for own in short.values())
    assert sum((own.long() ** 2).sum().item() for own in short.values()) <= round(step**-2)  # in whole numbers


def test_a_short_vector_loses_less_than_a_step_of_each_entry():
    vector = {"w": torch.tensor([0.25, -0.3, 0.0]).double()}
    assert in_steps(vector, 1.0, 0.125)["w"].tolist() == [2, -2, 0]
    assert in_steps({"w": torch.zeros(2).double()}, 1.0, 0.125)["w"].tolist() == [0, 0]


def test_a_longer_change_is_shortened_and_a_shorter_one_left():
    before = {"w": torch.zeros(2), "b": torch.ones(1)}
    after = {"w": torch.tensor([3.0, 0.0]), "b": torch.tensor([5.0])}
    assert norm_between(after, before) == 5
    short = clipped(before, after, 2.5)
    assert norm_between(short, before) == pytest.approx(2.5, rel=1e-5)
    assert norm_between(short, before) <= 2.5
    torch.testing.assert_close(short["w"], torch.tensor([1.5, 0.0]))
    assert clipped(before, after, 5.0) == after


def test_nobody_can_draw_the_same_noise_again():
    mean, held = summed()
    one, two = (released(STATE, mean, held, 1.0) for _ in range(2))
    assert not (one["w"] == two["w"])[held("w") > 0].any()
