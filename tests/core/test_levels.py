"""Levels, mixes and widths."""

import traceback
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, strategies as st

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.assignment import grown_rate
from heterofl_flwr.core.levels import LEVELS, exact_rate, level_name, rate_of, width
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.federation.options import Slicing


def test_each_level_has_half_the_rate_of_the_one_before():
    assert dict(LEVELS) == {level: 0.5**number for number, level in enumerate("abcde")}


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (1e-05, Fraction(1, 100_000)),
        (5e-324, Fraction(5, 10**324)),
        (" 1/3 ", Fraction(1, 3)),
        (Fraction(1, 3), Fraction(1, 3)),
        (5 / 6, Fraction(5, 6)),  # prints as 0.8333333333333334, which is more
        (np.float32(0.3), Fraction(3, 10)),  # the decimal it prints as, not its binary value
    ],
)
def test_a_rate_is_the_fraction_or_decimal_number_that_it_stands_for(rate, expected):
    assert exact_rate(rate) == expected


EXTREME = ("1e-400", Fraction(1, 10**400), "1e400")  # 0 or infinity as a float
SLOW = ("1e999999999", "1e-999999999", "9" * 10**6, "1/" + "9" * 10**6)  # numbers that take minutes to compute


def test_what_is_no_rate_raises():
    for rate in (0, -0.5, 1.0000001, True, False, float("nan"), float("inf"), None, "x", "1/0", [0.5], *EXTREME, *SLOW):
        with pytest.raises(ConfigError, match="expected a number above 0 and up to 1"):
            exact_rate(rate)


@pytest.mark.parametrize(
    ("level", "rate", "name"), [("e", 0.0625, "e"), (".3", 0.3, "0.3"), (1, 1.0, "a"), (1e-05, 1e-05, "0.00001")]
)
def test_a_level_is_a_letter_or_a_rate(level, rate, name):
    assert rate_of(level) == rate_of(name) == rate
    assert level_name(rate) == name


def test_what_is_no_level_raises_an_error_that_lists_levels():
    for level in ("f", "A", "ab", "", "1/0", "0", "-0.5", "1.5", "nan", "inf", 0, 1.5, True, None):
        with pytest.raises(
            ConfigError, match=r"is no level: expected one of a \(1\), b \(0.5\), .*, e \(0.0625\) or a rate"
        ):
            rate_of(level)


@pytest.mark.parametrize("read", [rate_of, exact_rate, Mix.parse, lambda text: Slicing(global_rate=text)])
def test_a_mistyped_level_has_one_traceback(read):
    with pytest.raises(ConfigError) as caught:
        read("z2")
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("Traceback") == 1


@pytest.mark.parametrize(
    ("text", "rates", "counts"),
    [
        ("a-b-e", (1.0, 0.5, 0.0625), (1, 1, 1)),
        ("e1-a1", (1.0, 0.0625), (1, 1)),  # the authors take the first letter for the largest
        ("a05-e1", (1.0, 0.0625), (5, 1)),
        ("a2-1.0x3-.5", (1.0, 0.5), (5, 1)),
        (" a1 - e2 ", (1.0, 0.0625), (1, 2)),
    ],
)
def test_every_form_of_a_mix_is_read(text, rates, counts):
    assert Mix.parse(text) == Mix(rates, counts)


@pytest.mark.parametrize("text", ["a1-B1--2x", "a-1", "1", "a1b1", "a1x2", "a1.5", "a1-f1", "0.5x0", None])
def test_a_mix_that_cannot_be_read_is_refused_with_examples(text):
    with pytest.raises(ConfigError, match=r"(cannot read|is no level|has no clients|is no text).*write one like 'a1-b"):
        Mix.parse(text)


rates = st.integers(1, 10_000).map(lambda ticks: ticks / 10_000)
parts = st.one_of(
    st.tuples(st.sampled_from(sorted(LEVELS)), st.integers(1, 999)).map(lambda part: f"{part[0]}{part[1]}"),
    st.tuples(rates, st.integers(1, 999)).map(lambda part: f"{Decimal(str(part[0])):f}x{part[1]}"),
    st.integers(1, 999).map("a1-x{}".format),
)


@given(texts=st.lists(parts, min_size=1, max_size=6))
def test_a_mix_written_out_reads_back_the_same(texts):
    mix = Mix.parse("-".join(texts))
    assert Mix.parse(str(mix)) == Mix.parse(mix) == mix
    assert str(Mix.parse(str(mix))) == str(mix)
    assert str(Mix.parse("e8-0.3x2-a1-b1")) == "a1-b1-0.3x2-e8"
    assert str(Mix.parse("x2-c1-x")) == "c1-x3"


@given(texts=st.lists(parts, min_size=1, max_size=6), data=st.data())
def test_the_order_and_the_grouping_of_parts_do_not_matter(texts, data):
    mix = Mix.parse("-".join(texts))
    other = Mix.parse("-".join(data.draw(st.permutations(texts))))
    assert other == mix
    assert hash(other) == hash(mix)
    assert mix.rates == tuple(sorted(set(mix.rates), reverse=True))
    assert mix.global_rate == max(mix.rates)
    assert sum(mix.shares) == pytest.approx(1)


def test_the_global_model_may_be_larger_than_every_clients():
    mix = Mix.parse("b1-c1")
    assert (mix.global_rate, mix.all_rates) == (0.5, (0.5, 0.25))
    assert (mix.with_global_rate("a").all_rates, mix.with_global_rate("a").rates) == ((1.0, 0.5, 0.25), mix.rates)
    assert mix.with_global_rate("") == mix.with_global_rate(0.5) == mix != mix.with_global_rate(1.0)
    with pytest.raises(ConfigError, match=r"of rate 0\.25 does not hold the largest of the mix b1-c1: expected 0\.5"):
        mix.with_global_rate("c")


def test_clients_may_take_no_part():
    mix = Mix.parse("b1-x3")
    assert (mix.rates, mix.shares, mix.idle) == ((0.5,), (1.0,), 3)
    assert mix.parts == (0.5, 0.0, 0.0, 0.0)
    with pytest.raises(ConfigError, match="mix 'x2': nobody takes part; write one like"):
        Mix.parse("x2")


def test_the_mean_weighs_by_clients():
    assert Mix.parse("a1-b2-0.1x5").mean({1.0: 80.0, 0.5: 20.0, 0.1: 4.0}) == pytest.approx((80 + 2 * 20 + 5 * 4) / 8)


decimals = st.integers(1, 10_000).map(lambda ticks: (ticks / 10_000, Fraction(ticks, 10_000)))


@pytest.mark.parametrize(
    ("full", "rate", "heads", "expected"),
    [
        (100, 0.07, 1, 7),  # in floats, the ceiling of 100 * 0.07 is 8
        (6, 5 / 6, 1, 5),
        (1, 0.001, 1, 1),
        (256, 0.3, 8, 80),  # ceil(9.6) = 10 of each head's 32; without heads it would be 77
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


def test_widths_that_do_not_divide_in_heads_raise():
    for full, heads in ((0, 1), (-4, 1), (8, 3), (8, 0), (8, -2), (4, 8), ("8", 1), (8, "2"), (None, 1)):
        with pytest.raises(ConfigError, match=f"a width of {full!r} in {heads!r} heads is not usable"):
            width(full, 0.5, heads)


def test_rates_grow_by_a_level_up_to_the_clients_own():
    mix = Mix.parse("a1-b1-c1")
    rates = [[grown_rate(mix, rate, number, 2) for number in range(1, 8)] for rate in (1.0, 0.5, 0.3, 0.25, 0.1, 0.0)]
    assert rates[0] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0, 1.0]
    assert rates[1] == [0.25, 0.25, *[0.5] * 5]
    assert rates[2] == [0.25, 0.25, *[0.3] * 5]
    assert rates[3:] == [[rate] * 7 for rate in (0.25, 0.1, 0.0)]
    assert grown_rate(mix, 1.0, 1, 0) == 1.0
    larger = Mix.parse("b1-c1").with_global_rate("a")  # a node may hold more than the mix has
    assert [grown_rate(larger, 1.0, number, 1) for number in (1, 2, 3)] == [0.25, 0.5, 1.0]
