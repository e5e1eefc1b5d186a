"""Robust means against their slow twin, by hand, and what hostile replies can do to them."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from heterofl_flwr.common.errors import ConfigError, ReplyError
from heterofl_flwr.core import Aggregation, Plan, Robust, RobustMean
from tests.core import strategies, twin

OPTIONS = st.builds(
    lambda mean, few: Robust(**mean, few=few),
    mean=st.sampled_from([{"mean": "median"}, *({"trim": trim} for trim in (0.0, 0.2, 0.45))]),
    few=st.sampled_from(["mean", "keep"]),
)
SPACING = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-20, torch.float64: 1e-12}


def aggregation_of(state, **options):
    return Aggregation(state, aggregator=partial(RobustMean, robust=Robust(**options)))


@given(drawn=strategies.rounds(most=6, weights=st.just(1.0)), robust=OPTIONS)
def test_the_result_is_the_twins(drawn, robust):
    expected = drawn.expected(twin.robust_mean, robust)
    for name, value in drawn.result(aggregator=partial(RobustMean, robust=robust)).items():
        assert value.dtype == drawn.state[name].dtype
        np.testing.assert_allclose(
            value.double().numpy(), expected[name], rtol=SPACING[value.dtype], atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize(("few", "expected"), [("mean", [3, 2, 1, 0]), ("keep", [3, 0, 0, 0])])
def test_entries_that_keep_their_values_count_as_held_by_nobody(few, expected):
    state = {"w": torch.zeros(4)}
    aggregator = aggregation_of(state, few=few)
    for kept in (1, 2, 3):
        aggregator.add(Plan.between(state, {"w": (kept,)}), {"w": torch.ones(kept)})
    assert aggregator.holders("w").tolist() == expected


def combined(*replies, old=0.0, **options):
    """Return what becomes of four equal entries of which each client holds the first few."""
    state = {"w": torch.full((4,), old)}
    aggregator = aggregation_of(state, **options)
    for values in replies:
        aggregator.add(Plan.between(state, {"w": (len(values),)}), {"w": torch.tensor(values)})
    return aggregator.result()["w"].tolist()


FIVE = [[1.0], [2.0], [3.0], [100.0], [-100.0]]
BY_HAND = {
    "the largest and the smallest are dropped": ({}, FIVE, [2.0]),
    "a share of each end": ({"trim": 0.2}, [*FIVE, [4.0], [5.0], [6.0], [-50.0], [50.0]], [3.5]),
    "a third of each end": ({"trim": 1 / 3}, [[1.0], [2.0], [3.0], [5.0], [9.0], [90.0]], [4.0]),
    "one at each end, whatever the share": ({"trim": 0.0}, [[1.0], [2.0], [9.0]], [2.0]),
    "the median of four": ({"mean": "median"}, [[1.0], [2.0], [9.0], [30.0]], [5.5]),
    "the median of five": ({"mean": "median"}, [[1.0], [2.0], [9.0], [30.0], [-7.0]], [2.0]),
    "one holder": ({}, [[1.0, 8.0, -8.0], [1.0], [1.0]], [1.0, 8.0, -8.0]),
    "two holders": ({}, [[1.0, 0.5], [1.0, 8.0], [1.0], [1.0]], [1.0, 4.25]),
    "few keep the old values": ({"few": "keep", "old": 3.0}, [[4.0, 8.0], [4.0], [4.0]], [4.0, 3.0, 3.0, 3.0]),
}


@pytest.mark.parametrize(("options", "replies", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_robust_means_by_hand(options, replies, expected):
    assert combined(*replies, **options)[: len(expected)] == pytest.approx(expected)


def test_a_median_has_no_fraction_to_drop():
    with pytest.raises(ConfigError, match=r"trim is 0\.1, which a median does not use; expected mean="):
        Robust(mean="median", trim=0.1)


def test_each_client_counts_once():
    state = {"w": torch.zeros(2)}
    aggregator = aggregation_of(state)
    with pytest.raises(ConfigError, match="counts each client once; found the weight 2, expected 1"):
        aggregator.add(Plan.between(state, state), state, weight=2)
    assert aggregator.replies == 0


def test_a_reply_is_kept_as_it_was_and_refused_as_for_the_mean():
    state = {"w": torch.zeros(2)}
    aggregator = Aggregation(state, aggregator=partial(RobustMean, robust=Robust()), largest=1e15, norm_bound=10.0)
    plan, values = Plan.between(state, state), torch.ones(2)
    for _ in range(3):
        aggregator.add(plan, {"w": values})
    aggregator.add(plan, {"w": torch.full((2,), 5.0)}, weight=0)  # of a client without examples
    values.fill_(7)  # the caller goes on with its tensor
    for wrong in (math.nan, 1e30, 8.0):
        with pytest.raises(ReplyError):
            aggregator.add(plan, {"w": torch.full((2,), wrong)})
    assert aggregator.result()["w"].tolist() == [1.0, 1.0]
