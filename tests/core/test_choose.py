"""Which entries clients keep: prefixes, a rolling window, what is drawn."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core import Plan
from heterofl_flwr.core.axes import make_slice_function, prefix
from heterofl_flwr.nn import build_model

RULES = ("prefix", "rolling", "random-level", "random-client")


def kept(rule, full, number, **told):
    told = {"seed": 0, "server_round": 1, "rate": 0.5, "partition": 0, **told}
    positions = make_slice_function(rule, **told)(full, number)
    return list(range(number)) if positions is None else list(positions)


@given(
    st.sampled_from(RULES),
    st.integers(1, 40).flatmap(lambda full: st.tuples(st.just(full), st.integers(0, full))),
    st.integers(1, 100),
    st.integers(0, 5),
)
def test_as_many_positions_as_asked_for_ascending_and_inside(rule, lengths, server_round, partition):
    full, number = lengths
    positions = kept(rule, full, number, server_round=server_round, partition=partition)
    assert len(positions) == number
    assert positions == sorted(set(positions))
    assert all(0 <= position < full for position in positions)


def test_a_window_moves_on_by_one_and_goes_round():
    assert [kept("rolling", 4, 2, server_round=number) for number in range(1, 6)] == [
        [0, 1],
        [1, 2],
        [2, 3],
        [0, 3],
        [0, 1],
    ]


@given(st.integers(1, 30).flatmap(lambda full: st.tuples(st.just(full), st.integers(1, full))))
def test_a_full_roll_covers_all_entries_equally_often(lengths):
    full, number = lengths
    held = [0] * full
    for start in range(full):
        for position in kept("rolling", full, number, server_round=start + 1):
            held[position] += 1
    assert held == [number] * full


def test_a_window_that_stays_at_the_start_is_the_prefix():
    full, small = build_model("cnn", hidden=(8, 16))(1.0), build_model("cnn", hidden=(8, 16))(0.25)
    window = make_slice_function("rolling", seed=0, server_round=1, rate=0.25, partition=0)
    assert Plan.of(full, small, slice_function=window) == Plan.of(full, small, slice_function=prefix)
    assert Plan.of(full, small).sliced(window) == Plan.of(full, small)


@pytest.mark.parametrize(
    ("rule", "varies"),
    [
        ("random-level", {"seed", "server_round", "rate"}),
        ("random-client", {"seed", "server_round", "partition"}),
    ],
)
def test_what_a_draw_depends_on(rule, varies):
    other = {"seed": 1, "server_round": 2, "rate": 0.25, "partition": 1}
    changed = {name for name, value in other.items() if kept(rule, 64, 16) != kept(rule, 64, 16, **{name: value})}
    assert changed == varies


def test_draws_are_uniform():
    number = 2000
    held = torch.zeros(8)
    for partition in range(number):
        held[kept("random-client", 8, 3, partition=partition)] += 1
    # Each is binomial with a standard deviation of 21.7.
    assert (held - number * 3 / 8).abs().max() < 5 * 21.7


@pytest.mark.parametrize("rule", RULES)
def test_what_is_added_in_a_residual_network_has_equal_channels(rule):
    build = build_model("preresnet18", hidden=(8, 16, 16, 16))
    plan = Plan.of(build(1.0), build(0.5)).sliced(
        make_slice_function(rule, seed=0, server_round=3, rate=0.5, partition=0)
    )
    outputs = [
        (axes[0].full, axes[0].index)
        for name, axes in plan.axes.items()
        if axes[0].kept < axes[0].full and ("conv2" in name or "shortcut" in name)
    ]
    assert len(outputs) >= 4
    assert len(set(outputs)) == len({full for full, _ in outputs})
