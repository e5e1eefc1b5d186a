"""Clipping keeps a change's direction; noise is that of the number of clients that held an entry."""

import math

import pytest
import torch

from heterofl_flwr.core import Aggregator, Plan
from heterofl_flwr.core.noise import clipped, noised, secret_generator
from heterofl_flwr.core.reply import norm_between

STATE = {"w": torch.zeros(4, 4), "rows.weight": torch.zeros(3, 4)}
WIDE, MIDDLE, NARROW = (Plan.between(STATE, {"w": (size, size), "rows.weight": (3, size)}) for size in (3, 2, 1))


def aggregated():
    """Return counts by hand: 10 clients hold the first entry, 3 the second, 1 the third and nobody the fourth."""
    aggregator = Aggregator(STATE, label_rows=["rows.weight"])
    for plan, clients in ((WIDE, 1), (MIDDLE, 2), (NARROW, 7)):
        for _ in range(clients):
            labels = [0, 2] if plan is MIDDLE else None
            aggregator.add(plan, {name: torch.ones(shape) for name, shape in plan.shapes.items()}, labels=labels)
    return aggregator


def test_the_aggregator_counts_who_held_each_entry_and_row():
    held = aggregated().held()
    assert held["w"].tolist() == [[10, 3, 1, 0], [3, 3, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert held["rows.weight"].tolist() == [[10, 3, 1, 0], [8, 1, 1, 0], [10, 3, 1, 0]]


def test_noise_on_an_entry_is_that_on_the_sum_over_the_clients_that_held_it():
    aggregator = aggregated()
    held, mean = aggregator.held(), aggregator.result()
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([noised(mean, held, 0.6, generator)["w"] - mean["w"] for _ in range(4000)])
    for clients in (10, 3, 1):
        own = draws[:, held["w"] == clients]
        assert own.std().item() == pytest.approx(0.6 / clients, rel=0.03)
        assert own.mean().item() == pytest.approx(0, abs=5 * 0.6 / clients / math.sqrt(own.numel()))
    assert not draws[:, held["w"] == 0].any()


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
    one, two = (torch.randn(3, generator=secret_generator()) for _ in range(2))
    assert not torch.equal(one, two)
