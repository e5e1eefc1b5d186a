"""Who has a slot in a step, against a slow twin."""

from collections import Counter
from itertools import product

import pytest

from heterofl_flwr.stages.asynchronous import Slots

RATES = (1.0, 0.5, 0.25)


@pytest.mark.parametrize(("quota", "extra"), list(product(range(3), range(4))))
def test_a_reply_waits_only_where_another_level_has_its_fill(quota, extra):
    size = quota + extra
    for arrivals in product(RATES, repeat=5):
        slots, taken = Slots(size, quota), Counter()
        for number, rate in enumerate(arrivals, 1):
            kept = sum(max(quota - taken[other], 0) for other in {*arrivals[number:]} - {rate})
            expected = taken.total() < size and (taken[rate] < quota or taken.total() + kept < size)
            assert slots.has_slot(rate, arrivals[number:]) == expected
            if expected:
                slots.take(rate)
                taken[rate] += 1
            assert slots.all_taken == (taken.total() >= size)
