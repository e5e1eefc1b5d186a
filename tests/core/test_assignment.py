"""Which rates clients get: Fix, Dynamic, and clients that join."""

from collections import Counter

import pytest
from hypothesis import given, strategies as st

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.assignment import dynamic_rate, fixed_rate, joining_rates
from heterofl_flwr.core.mix import Mix


@pytest.mark.parametrize(
    ("text", "number", "blocks"),
    [
        ("a1-e9", 100, [(1.0, 10), (0.0625, 90)]),
        ("a1-b1-c1", 100, [(1.0, 33), (0.5, 33), (0.25, 34)]),  # one left over, which the smallest gets
        ("a1-b1-e8", 19, [(1.0, 1), (0.5, 1), (0.0625, 17)]),  # nine left over
        ("0.7x1-0.3x2", 3, [(0.7, 1), (0.3, 2)]),
        # Fewer clients than parts are spread from the largest to the smallest.
        ("a1-b1-c1-d1-e1", 2, [(1.0, 1), (0.0625, 1)]),
        ("a1-b1-c1-d1-e1", 4, [(1.0, 1), (0.5, 1), (0.125, 1), (0.0625, 1)]),  # 0, 4/3, 8/3 and 4, rounded
        ("a1-e9", 3, [(1.0, 1), (0.0625, 2)]),
        ("b1-x1", 5, [(0.5, 2), (0.0, 3)]),  # who takes no part comes last
    ],
)
def test_fix_gives_contiguous_blocks(text, number, blocks):
    found = [fixed_rate(Mix.parse(text), partition, number) for partition in range(number)]
    assert found == [rate for rate, count in blocks for _ in range(count)]


def test_a_clients_own_rate_wins_up_to_the_global_rate():
    for capacity, expected in ((0.3, 0.3), (0.5, 0.5), (1, 0.5), (0.001, 0.001)):
        for partition in (0, 3):
            assert fixed_rate(Mix.parse("b1-e1"), partition, 4, capacity=capacity) == expected


def _draws(mix, capacity=None, seed=0, rounds=200, partitions=50):
    return [
        dynamic_rate(mix, seed=seed, server_round=server_round, partition=partition, capacity=capacity)
        for server_round in range(1, rounds + 1)
        for partition in range(partitions)
    ]


@pytest.mark.parametrize(
    ("mix", "capacity", "shares"),
    [
        ("a1-b2-e7", None, {1.0: 0.1, 0.5: 0.2, 0.0625: 0.7}),
        ("a5-b1-e3", 0.5, {0.5: 0.25, 0.0625: 0.75}),
        ("a1-b1-e1", 0.3, {0.0625: 1.0}),
    ],
)
def test_dynamic_draws_the_mixs_shares_of_what_a_client_can_hold(mix, capacity, shares):
    found = Counter(_draws(Mix.parse(mix), capacity))  # 10,000 draws: three standard deviations are 0.014 at most
    assert {rate: number / 10_000 for rate, number in found.items()} == pytest.approx(shares, abs=0.014)


def test_draws_are_the_same_on_every_machine():
    for _ in range(2):
        drawn = _draws(Mix.parse("a1-b1-c1-d1-e1"), seed=7, rounds=1, partitions=8)
        assert drawn == [0.0625, 0.125, 0.125, 0.25, 0.25, 0.0625, 0.125, 0.5]


def test_a_client_that_can_hold_none_of_the_rates_is_an_error():
    with pytest.raises(ConfigError, match=r"partition 3 can hold rate 0.1, .* smallest rate of the mix a1-c1 is 0.25"):
        dynamic_rate(Mix.parse("a1-c1"), seed=0, server_round=1, partition=3, capacity=0.1)


@pytest.mark.parametrize(
    ("text", "held", "expected"),
    [
        ("a1-b1-c1-d1-e1", [], [1.0, 0.25, 0.0625]),
        ("a1-b1-c1-d1-e1", [1.0, 0.0625], [0.5, 0.25, 0.125]),
        ("a1-e9", [1.0], [0.0625, 0.0625, 0.0625]),
        ("a1-e2", [0.0625, 0.0625, 0.0625], [1.0, 1.0, 0.0625]),
        ("a1-x2", [], [1.0, 0.0, 0.0]),
        ("a1-x2", [0.0, 0.0], [1.0, 0.0, 1.0]),
    ],
)
def test_clients_that_join_get_what_the_mix_lacks(text, held, expected):
    assert joining_rates(Mix.parse(text), held, 3) == expected


@given(st.sampled_from(["a1-b1-c1-d1-e1", "a1-e9", "b2-c3"]), st.integers(1, 6), st.integers(1, 5))
def test_clients_that_join_end_in_the_proportions_of_the_mix(text, first, times):
    mix, number = Mix.parse(text), times * sum(Mix.parse(text).counts)
    held = joining_rates(mix, [], 1)
    while len(held) < number:
        held += joining_rates(mix, held, min(first, number - len(held)))
    assert [held.count(rate) for rate in mix.rates] == [times * count for count in mix.counts]
