"""Who has a seat in a step, against a slow twin; what lasts from step to step; which options do not fit."""

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, strategies as st

from heterofl_flwr.stages.asynchronous import Asynchronous, Buffered, Seats

RATES = (1.0, 0.5, 0.25)
ARRIVALS = st.lists(st.sampled_from(RATES), max_size=30)


def take(seats, rate, training):
    """Take a seat if there is one; return whether there is."""
    if has_seat := seats.has_seat(rate, training):
        seats.take(rate)
    return has_seat


@pytest.mark.parametrize(("quota", "extra"), list(product(range(3), range(4))))
def test_a_reply_waits_only_where_another_level_has_its_seat(quota, extra):
    size = quota + extra
    for arrivals in product(RATES, repeat=5):
        seats, taken = Seats(size, quota), Counter()
        for number, rate in enumerate(arrivals, 1):
            kept = sum(max(quota - taken[other], 0) for other in {*arrivals[number:]} - {rate})
            expected = taken.total() < size and (taken[rate] < quota or taken.total() + kept < size)
            assert take(seats, rate, arrivals[number:]) == expected
            taken[rate] += expected
            assert seats.all_taken == (taken.total() >= size)


@given(quota=st.integers(1, 2), arrivals=ARRIVALS)
def test_every_level_that_trains_has_its_quota(quota, arrivals):
    seats, wanted = Seats(quota * len(RATES), quota), Counter()
    for rate in (*arrivals, *[rate for rate in RATES for _ in range(quota)]):
        wanted[rate] += take(seats, rate, RATES)
    assert seats.all_taken
    assert all(wanted[rate] == quota for rate in RATES)


def test_what_lasts_is_who_trains():
    stage = Asynchronous(Buffered(size=2, concurrency=2))
    stage.training = [3, 1]
    other = Asynchronous(Buffered(size=2, concurrency=2))
    other.load(stage.state())
    assert other.training == [3, 1]
    other.load({})
    assert other.training == []
