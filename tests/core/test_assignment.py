from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core import Mix, dynamic_rate, fixed_rate
from heterofl_flwr.core.levels import joining_rates
from heterofl_flwr.errors import ConfigError

mixes = st.lists(
    st.tuples(st.sampled_from("abcde"), st.integers(1, 9)).map(lambda part: f"{part[0]}{part[1]}"),
    min_size=1,
    max_size=5,
).map(lambda parts: Mix.parse("-".join(parts)))


def _fixed(text, number):
    return [fixed_rate(Mix.parse(text), partition, number) for partition in range(number)]


@pytest.mark.parametrize(
    ("text", "number", "blocks"),
    [
        ("a1-e1", 10, [(1.0, 5), (0.0625, 5)]),
        ("a1-e9", 100, [(1.0, 10), (0.0625, 90)]),
        ("a9-b1", 100, [(1.0, 90), (0.5, 10)]),
        ("a1-b1-c1-d1-e1", 100, [(1.0, 20), (0.5, 20), (0.25, 20), (0.125, 20), (0.0625, 20)]),
        ("a1-b1-c1", 100, [(1.0, 33), (0.5, 33), (0.25, 34)]),  # one left over
        ("a2-b1", 100, [(1.0, 66), (0.5, 34)]),
        ("a1-b1-e8", 19, [(1.0, 1), (0.5, 1), (0.0625, 17)]),  # nine left over
        ("e1-a1", 4, [(1.0, 2), (0.0625, 2)]),
        ("c1", 3, [(0.25, 3)]),
        ("0.7x1-0.3x2", 3, [(0.7, 1), (0.3, 2)]),
    ],
)
def test_fix_gives_contiguous_blocks_and_the_rest_to_the_smallest(text, number, blocks):
    assert _fixed(text, number) == [rate for rate, count in blocks for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "number", "expected"),
    [
        ("a1-b1-c1-d1-e1", 1, [1.0]),
        ("a1-b1-c1-d1-e1", 2, [1.0, 0.0625]),
        ("a1-b1-c1-d1-e1", 3, [1.0, 0.25, 0.0625]),
        ("a1-b1-c1-d1-e1", 4, [1.0, 0.5, 0.125, 0.0625]),  # 0, 4/3, 8/3 and 4, rounded
        ("a1-e9", 3, [1.0, 0.0625, 0.0625]),
        ("a1-e9", 2, [1.0, 0.0625]),
        ("a9-e1", 2, [1.0, 0.0625]),
    ],
)
def test_fewer_clients_than_parts_are_spread_from_the_largest_to_the_smallest(text, number, expected):
    assert _fixed(text, number) == expected


@given(mix=mixes, number=st.integers(1, 200))
def test_fix_never_grows_and_keeps_the_proportions(mix, number):
    rates = [fixed_rate(mix, partition, number) for partition in range(number)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == mix.global_rate
    found, total = Counter(rates), sum(mix.counts)
    if number >= total:
        for rate, count in list(zip(mix.rates, mix.counts, strict=True))[:-1]:
            assert found[rate] == number // total * count
        assert found[mix.rates[-1]] == number - number // total * (total - mix.counts[-1])
    elif number > 1:
        assert rates[-1] == mix.rates[-1]


@pytest.mark.parametrize(
    ("capacity", "expected"), [(0.3, 0.3), (0.0625, 0.0625), (0.5, 0.5), (1.0, 0.5), (1, 0.5), (0.001, 0.001)]
)
def test_a_clients_own_rate_wins_up_to_the_global_rate(capacity, expected):
    for partition in range(4):
        assert fixed_rate(Mix.parse("b1-e1"), partition, 4, capacity=capacity) == expected


@pytest.mark.parametrize(("partition", "number"), [(-1, 3), (3, 3), (0, 0), (7, 2)])
def test_a_partition_that_does_not_exist_is_refused(partition, number):
    with pytest.raises(ConfigError, match=f"partition {partition} of {number} does not exist"):
        fixed_rate(Mix.parse("a1"), partition, number)


@pytest.mark.parametrize("capacity", [0, -1, 1.5, float("nan"), True])
def test_a_capacity_that_is_no_rate_is_refused(capacity):
    with pytest.raises(ConfigError, match="expected a number above 0 and up to 1"):
        fixed_rate(Mix.parse("a1"), 0, 1, capacity=capacity)
    with pytest.raises(ConfigError, match="expected a number above 0 and up to 1"):
        dynamic_rate(Mix.parse("a1"), seed=0, server_round=1, partition=0, capacity=capacity)


def _draws(mix, capacity=None, seed=0, rounds=200, partitions=50):
    return [
        dynamic_rate(mix, seed=seed, server_round=server_round, partition=partition, capacity=capacity)
        for server_round in range(1, rounds + 1)
        for partition in range(partitions)
    ]


def test_dynamic_draws_in_the_mixs_proportions():
    found = Counter(_draws(Mix.parse("a1-b2-e7")))  # 10,000 draws: three standard deviations are 0.014 at most
    assert found.keys() == {1.0, 0.5, 0.0625}
    for rate, share in ((1.0, 0.1), (0.5, 0.2), (0.0625, 0.7)):
        assert found[rate] / 10_000 == pytest.approx(share, abs=0.014)


def test_dynamic_draws_among_what_a_client_can_hold():
    found = Counter(_draws(Mix.parse("a5-b1-e3"), capacity=0.5))
    assert found.keys() == {0.5, 0.0625}
    assert found[0.5] / 10_000 == pytest.approx(0.25, abs=0.014)
    assert set(_draws(Mix.parse("a1-b1-e1"), capacity=0.3, rounds=5)) == {0.0625}


def test_a_capacity_at_the_largest_rate_changes_no_draw():
    mix = Mix.parse("a1-b1-e1")
    assert _draws(mix, capacity=1.0, rounds=3) == _draws(mix, rounds=3)


@given(
    mix=mixes,
    seed=st.integers(0, 2**40),
    server_round=st.integers(1, 1000),
    partition=st.integers(0, 1000),
    capacity=st.one_of(st.none(), st.sampled_from([1.0, 0.5, 0.3])),
)
def test_dynamic_is_a_function_of_its_arguments_alone(mix, seed, server_round, partition, capacity):
    if capacity is not None and capacity < mix.rates[-1]:
        return
    arguments = {"seed": seed, "server_round": server_round, "partition": partition, "capacity": capacity}
    first = dynamic_rate(mix, **arguments)
    _draws(mix, rounds=1, partitions=3)  # other draws between change nothing
    assert dynamic_rate(mix, **arguments) == first
    assert first in mix.rates
    assert capacity is None or first <= capacity


def test_rounds_clients_and_seeds_draw_apart():
    mix = Mix.parse("a1-b1-c1-d1-e1")
    by_round = [_draws(mix, rounds=1, partitions=40), _draws(mix, rounds=2, partitions=40)[40:]]
    assert by_round[0] != by_round[1]
    assert _draws(mix, seed=1, rounds=1, partitions=40) != by_round[0]
    assert len(set(by_round[0])) > 1


def test_these_draws_are_the_same_on_every_machine():
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
    ],
)
def test_clients_that_join_get_what_the_mix_lacks(text, held, expected):
    assert joining_rates(Mix.parse(text), held, 3) == expected


@given(st.sampled_from(["a1-b1-c1-d1-e1", "a1-e9", "b2-c3"]), st.integers(1, 6), st.integers(1, 5))
def test_clients_that_join_one_by_one_end_in_the_proportions_of_the_mix(text, first, times):
    mix, number = Mix.parse(text), times * sum(Mix.parse(text).counts)
    held = joining_rates(mix, [], 1)
    while len(held) < number:
        held += joining_rates(mix, held, min(first, number - len(held)))
    assert [held.count(rate) for rate in mix.rates] == [times * count for count in mix.counts]
