"""Who has a seat in a step, against a slow twin; what lasts from step to step; which options do not fit."""

from collections import Counter, deque

from hypothesis import given, strategies as st

from heterofl_flwr.stages.asynchronous import Asynchronous, Buffered, Seats

RATES = (1.0, 0.5, 0.25)
ARRIVALS = st.lists(st.sampled_from(RATES), max_size=30)


def take(seats, rate, training):
    """Take a seat if there is one; return whether there is."""
    if has_seat := seats.has_seat(rate, training):
        seats.take(rate)
    return has_seat


@given(arrivals=ARRIVALS, quota=st.integers(0, 2), extra=st.integers(0, 4))
def test_a_reply_waits_only_where_another_level_has_its_seat(arrivals, quota, extra):
    size = quota + extra
    seats, taken, left = Seats(size, quota), Counter(), deque(arrivals)
    while left:
        rate = left.popleft()
        kept = 0
        for other in RATES:
            if other != rate and other in left:
                kept += max(quota - taken[other], 0)
        expected = sum(taken.values()) < size and (taken[rate] < quota or sum(taken.values()) + kept < size)
        assert take(seats, rate, left) == expected
        taken[rate] += expected
        assert seats.all_taken == (sum(taken.values()) >= size)


@given(arrivals=ARRIVALS.filter(len), quota=st.integers(0, 2), extra=st.integers(0, 4))
def test_a_step_that_lacks_replies_never_waits_for_nobody(arrivals, quota, extra):
    size = max(quota + extra, 1)
    seats, waiting, taken = Seats(size, quota), [], 0
    for number, rate in enumerate(arrivals):
        if take(seats, rate, [*arrivals[number + 1 :], *waiting]):
            taken += 1
        else:
            waiting.append(rate)
    for number, rate in enumerate(waiting):
        taken += take(seats, rate, waiting[number + 1 :])
    assert taken == min(size, len(arrivals))


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
