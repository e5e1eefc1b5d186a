import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core import LEVELS, width
from heterofl_flwr.errors import ConfigError

decimals = st.integers(1, 10_000).map(lambda ticks: (ticks / 10_000, Fraction(ticks, 10_000)))


def test_floats_would_keep_one_channel_too_many():
    assert math.ceil(100 * 0.07) == 8
    assert width(100, 0.07) == 7


@pytest.mark.parametrize(
    ("full", "rate", "heads", "expected"),
    [
        (512, 1.0, 1, 512),
        (512, 0.0625, 1, 32),
        (64, 0.0625, 1, 4),
        (9, 0.5, 1, 5),
        (1, 0.001, 1, 1),
        (256, 0.0625, 8, 16),
        (256, 0.3, 8, 80),  # ceil(9.6) = 10 of each head's 32; without heads it would be 77
        (256, 0.01, 8, 8),
        (256, 0.99, 8, 256),
        (12, Fraction(1, 3), 4, 4),
    ],
)
def test_known_widths(full, rate, heads, expected):
    assert width(full, rate, heads) == expected


@given(full=st.integers(1, 5000), rate=decimals)
def test_a_width_is_the_ceiling_of_the_exact_product(full, rate):
    shown, exact = rate
    # In whole numbers alone: the smallest k with k * denominator >= full * numerator.
    kept = -(-full * exact.numerator // exact.denominator)
    assert width(full, shown) == width(full, exact) == kept
    assert 1 <= kept <= full


@given(part=st.integers(1, 200), heads=st.integers(1, 16), rate=decimals)
def test_a_width_with_heads_is_a_width_for_each_head(part, heads, rate):
    shown, _ = rate
    assert width(part * heads, shown, heads) == heads * width(part, shown)
    assert width(part * heads, shown, heads) >= width(part * heads, shown)


@given(full=st.integers(1, 2000), one=decimals, other=decimals)
def test_a_larger_rate_never_keeps_less(full, one, other):
    small, large = sorted((one[0], other[0]))
    assert width(full, small) <= width(full, large) <= width(full, 1.0) == full


def test_a_width_of_the_papers_levels_can_be_cut_step_by_step():
    # Why the authors' two formulas agree on the paper's levels: halving twice is quartering, rounded up or not.
    for full in range(1, 600):
        for large in LEVELS.values():
            for small in LEVELS.values():
                if small <= large:
                    assert width(width(full, large), Fraction(small) / Fraction(large)) == width(full, small)


@pytest.mark.parametrize(("full", "heads"), [(0, 1), (-4, 1), (8, 3), (8, 0), (8, -2), (4, 8)])
def test_widths_that_do_not_divide_in_heads_are_refused(full, heads):
    with pytest.raises(ConfigError, match=f"a width of {full} in {heads} heads is not usable"):
        width(full, 0.5, heads)


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan")])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ConfigError, match="above 0 and up to 1"):
        width(8, rate)
