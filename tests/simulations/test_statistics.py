"""Means over seeds and their intervals, and the tables that show them."""

import math

import pytest

from simulations.results.statistics import PERCENT, Summary, summarise


def test_an_interval_needs_three_values_a_deviation_two():
    assert summarise([3.0]) == Summary(1, 3.0)
    assert summarise([3.0]).interval is None
    two, three = summarise([1.0, 3.0]), summarise([1.0, 2.0, 3.0])
    assert (two.number, two.mean, two.half_width) == (2, 2.0, None)
    assert two.deviation == pytest.approx(math.sqrt(2))
    # Deviation 1; the quantile of t with 2 degrees of freedom is 4.3027.
    assert three.deviation == pytest.approx(1.0)
    assert three.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert three.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), rel=1e-6)


def test_no_interval_of_percentages_leaves_them():
    summary = summarise([99.0, 99.5, 99.9], PERCENT)
    assert summary.interval[1] == summary.prediction[1] == 100.0
    assert summarise([0.0, 1.0, 3.0], PERCENT).interval[0] == 0.0


def test_the_detectable_mean_is_that_of_a_power_of_80_percent():
    # Deviation 1 of three values: the quantiles of t with 2 degrees of freedom are 4.3027 and 1.0607.
    assert summarise([1.0, 2.0, 3.0]).detectable == pytest.approx((4.302653 + 1.060660) / math.sqrt(3), rel=1e-6)
    assert summarise([1.0, 3.0]).detectable is None


@pytest.mark.parametrize("values", [[math.nan, 1.0, 2.0], [math.inf, 1.0, 2.0], [math.inf, -math.inf, 1.0]])
def test_a_run_that_diverged_leaves_no_interval_of_use(values):
    found = summarise(values, PERCENT)
    assert found.mean == pytest.approx(sum(values) / 3, nan_ok=True)
    assert all(map(math.isnan, (found.deviation, *found.interval)))
