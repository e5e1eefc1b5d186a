"""The price of a mix against one federation for each of its levels, with the sums written out."""

import math

import pytest

from heterofl_flwr.core import Mix
from heterofl_flwr.runs.costs import price

COSTS = {1.0: (100.0, 1000.0), 0.5: (30.0, 200.0), 0.25: (10.0, 50.0)}


def test_the_price_is_that_of_clients_that_can_hold_each_level():
    mix = Mix.parse("a1-b1-c2-x4")
    found = price(mix, [rate for rate in mix.parts if rate], COSTS)
    # Of four clients one can hold a, two b, and all c.
    assert found.client_rounds == pytest.approx(4 / (1 + 2 + 4))
    assert found.bytes_share == pytest.approx((100 + 30 + 2 * 10) / (1 * 100 + 2 * 30 + 4 * 10))
    assert found.macs_share == pytest.approx((1000 + 200 + 2 * 50) / (1 * 1000 + 2 * 200 + 4 * 50))


def test_smaller_models_inside_a_clients_cost_multiplications_and_no_bytes():
    mix = Mix.parse("a1-b1-c1")
    alone = 1 * 1000 + 2 * 200 + 3 * 50
    plain, sandwich, every = (price(mix, mix.parts, COSTS, widths) for widths in ("none", "sandwich", "all"))
    assert plain[:2] == sandwich[:2] == every[:2]
    assert every.macs_share == pytest.approx((1000 + 200 + 50 + 200 + 50 + 50) / alone)
    assert sandwich.macs_share == pytest.approx((1000 + 200 + 50 + 200 + 50 + 50) / alone)  # one level between


def test_the_rates_of_the_rounds_count_where_levels_change():
    mix = Mix.parse("a1-c1")
    found = price(mix, [0.25, 0.25, 1.0, 0.25], COSTS)
    assert found.macs_share == pytest.approx((3 * 50 + 1000) / (2 * 1000 + 4 * 50))
    assert price(Mix.parse("a1"), [1.0, 1.0], COSTS) == (1.0, 1.0, 1.0)
    assert math.isnan(price(Mix.parse("a1"), [1.0], {1.0: (100.0, 0.0)}).macs_share)  # none that are counted
