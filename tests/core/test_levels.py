from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core import LEVELS, Mix, level_name, rate_of, rates_of_ratio
from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.errors import ConfigError


def test_the_levels_are_the_papers():
    assert dict(LEVELS) == {"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.125, "e": 0.0625}


def test_nobody_can_change_the_levels():
    with pytest.raises(TypeError, match="does not support item assignment"):
        LEVELS["a"] = 0.9


@pytest.mark.parametrize(
    ("ratio", "number", "expected"),
    [
        (0.5, 1, {"a": 1.0}),
        (1, 1, {"a": 1.0}),
        (0.3, 4, {"a": 1.0, "b": 0.3, "c": 0.09, "d": 0.027}),  # in floats, 0.3 ** 3 is 0.026999999999999996
        (Fraction(1, 4), 3, {"a": 1.0, "b": 0.25, "c": 0.0625}),
    ],
)
def test_levels_of_another_ratio_are_its_powers(ratio, number, expected):
    assert dict(rates_of_ratio(ratio, number)) == expected


@pytest.mark.parametrize("number", [0, -1, 27])
def test_a_number_of_levels_without_letters_is_refused(number):
    with pytest.raises(ConfigError, match=f"^{number} levels are not usable: expected 1 to 26"):
        rates_of_ratio(0.5, number)


def test_a_ratio_of_one_makes_no_levels():
    with pytest.raises(ConfigError, match="a ratio of 1 makes 3 equal levels"):
        rates_of_ratio(1.0, 3)


@pytest.mark.parametrize("ratio", [0, -0.5, 1.5])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigError, match="expected a number above 0 and up to 1"):
        rates_of_ratio(ratio, 3)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (1, Fraction(1)),
        (0.07, Fraction(7, 100)),
        (1e-05, Fraction(1, 100_000)),
        (Fraction(1, 3), Fraction(1, 3)),
        (Decimal("0.1"), Fraction(1, 10)),
        (np.float64(0.3), Fraction(3, 10)),
        (np.float32(0.3), Fraction(3, 10)),  # the decimal it prints as, not its binary value
    ],
)
def test_a_rate_is_the_decimal_number_that_it_prints_as(rate, expected):
    assert exact_rate(rate) == expected


@pytest.mark.parametrize(
    "rate", [0, 0.0, -0.5, 1.0000001, 2, True, False, float("nan"), float("inf"), None, "x", [0.5]]
)
def test_what_is_no_rate_is_refused(rate):
    with pytest.raises(ConfigError, match="expected a number above 0 and up to 1"):
        exact_rate(rate)


@pytest.mark.parametrize(
    ("level", "rate"), [("a", 1.0), ("e", 0.0625), ("0.3", 0.3), (".3", 0.3), ("1", 1.0), (0.3, 0.3), (1, 1.0)]
)
def test_a_level_is_a_letter_or_a_rate(level, rate):
    assert rate_of(level) == rate


@pytest.mark.parametrize("level", ["f", "A", "ab", "", "1/0", "0", "-0.5", "1.5", "nan", "inf", 0, 1.5, True, None])
def test_what_is_no_level_is_refused_with_the_levels_there_are(level):
    with pytest.raises(
        ConfigError, match=r"is no level: expected one of a \(1\), b \(0.5\), .*, e \(0.0625\) or a rate"
    ):
        rate_of(level)


def test_other_levels_can_be_given():
    levels = rates_of_ratio(0.3, 2)
    assert rate_of("b", levels) == 0.3
    assert level_name(0.3, levels) == "b"
    with pytest.raises(ConfigError, match=r"expected one of a \(1\), b \(0.3\) or"):
        rate_of("c", levels)


@pytest.mark.parametrize(("rate", "name"), [(1, "a"), (0.0625, "e"), (0.3, "0.3"), (1e-05, "0.00001"), (0.07, "0.07")])
def test_a_rate_without_a_letter_is_named_by_its_digits(rate, name):
    assert level_name(rate) == name
    assert rate_of(name) == rate


@pytest.mark.parametrize(
    ("text", "rates", "counts"),
    [
        ("a1", (1.0,), (1,)),
        ("a", (1.0,), (1,)),
        ("c", (0.25,), (1,)),
        ("a-b-c-d-e", (1.0, 0.5, 0.25, 0.125, 0.0625), (1, 1, 1, 1, 1)),
        ("a1-b1-e8", (1.0, 0.5, 0.0625), (1, 1, 8)),
        ("a1-e9", (1.0, 0.0625), (1, 9)),
        ("e1-a1", (1.0, 0.0625), (1, 1)),  # the authors take the first letter for the largest
        ("a12-e100", (1.0, 0.0625), (12, 100)),
        ("a05-e1", (1.0, 0.0625), (5, 1)),
        ("a1-e1-a2", (1.0, 0.0625), (3, 1)),
        ("1.0x1-0.3x9", (1.0, 0.3), (1, 9)),
        ("0.3x9-1.0x1", (1.0, 0.3), (1, 9)),
        ("1-.5", (1.0, 0.5), (1, 1)),
        ("a2-1.0x3-0.5", (1.0, 0.5), (5, 1)),
        (" a1 - e2 ", (1.0, 0.0625), (1, 2)),
    ],
)
def test_every_form_of_a_mix_is_read(text, rates, counts):
    assert Mix.parse(text) == Mix(rates, counts)


@pytest.mark.parametrize(
    "text", ["", "-", "a1-", "-a1", "A1", "a1b1", "a1,b1", "1x", "x3", "a1x2", "0.5x", "1e-3", "a1.5"]
)
def test_a_mix_that_cannot_be_read_shows_the_mix_and_a_right_one(text):
    with pytest.raises(ConfigError) as caught:
        Mix.parse(text)
    assert f"mix {text!r}" in str(caught.value)
    assert "write one like 'a1-b1-c1-d1-e1', 'a1-e9' or, with rates, '1.0x1-0.3x9'" in str(caught.value)


def test_all_parts_that_cannot_be_read_are_named():
    with pytest.raises(ConfigError, match="cannot read 'B1', '', '2x';"):
        Mix.parse("a1-B1--2x")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a1-f1", r"'f' is no level: expected one of a \(1\)"),
        ("2x1-0.5x1", "'2' is no level"),
        ("0x1", "'0' is no level"),
        ("a0-b1", "'a0' has no clients; leave it out"),
        ("0.5x0", "'0.5x0' has no clients"),
    ],
)
def test_a_part_that_means_nothing_is_refused_with_a_right_mix(text, reason):
    with pytest.raises(ConfigError, match=f"mix '{text}': {reason}.*write one like 'a1-b1"):
        Mix.parse(text)


rates = st.integers(1, 10_000).map(lambda ticks: ticks / 10_000)
parts = st.one_of(
    st.tuples(st.sampled_from(sorted(LEVELS)), st.integers(1, 999)).map(lambda part: f"{part[0]}{part[1]}"),
    st.tuples(rates, st.integers(1, 999)).map(lambda part: f"{Decimal(str(part[0])):f}x{part[1]}"),
)


@given(texts=st.lists(parts, min_size=1, max_size=6))
def test_a_mix_written_out_reads_back_the_same(texts):
    mix = Mix.parse("-".join(texts))
    assert Mix.parse(str(mix)) == mix
    assert str(Mix.parse(str(mix))) == str(mix)


@given(texts=st.lists(parts, min_size=1, max_size=6), data=st.data())
def test_the_order_and_the_grouping_of_parts_do_not_matter(texts, data):
    mix = Mix.parse("-".join(texts))
    other = Mix.parse("-".join(data.draw(st.permutations(texts))))
    assert other == mix
    assert hash(other) == hash(mix)
    assert mix.rates == tuple(sorted(set(mix.rates), reverse=True))
    assert mix.global_rate == max(mix.rates)
    assert sum(mix.shares) == pytest.approx(1)


def test_shares_are_kept_as_written():
    assert Mix.parse("a2-e2") != Mix.parse("a1-e1")
    assert Mix.parse("a2-e2").shares == Mix.parse("a1-e1").shares == (0.5, 0.5)


def test_the_canonical_text_goes_from_large_to_small():
    assert str(Mix.parse("e8-0.3x2-a1-b1")) == "a1-b1-0.3x2-e8"
    assert str(Mix.parse("0.5-0.25x3")) == "b1-c3"


def test_a_mix_of_other_levels_reads_back_by_its_rates():
    mix = Mix.parse("a1-c2", rates_of_ratio(0.3, 3))
    assert mix.rates == (1.0, 0.09)
    assert Mix.parse(str(mix)) == mix


@given(texts=st.lists(parts, min_size=1, max_size=4), scale=st.floats(1, 1e6))
def test_the_mean_weighs_by_clients(texts, scale):
    mix = Mix.parse("-".join(texts))
    everybody = [rate * scale for rate, count in zip(mix.rates, mix.counts, strict=True) for _ in range(count)]
    assert mix.mean({rate: rate * scale for rate in mix.rates}) == pytest.approx(sum(everybody) / len(everybody))


def test_the_mean_parameters_of_the_papers_mix():
    # Table 1, a-e on MNIST: (1,556,874 + 6,594) / 2, printed as 781.7 K.
    assert Mix.parse("a1-e1").mean({1.0: 1_556_874, 0.0625: 6_594}) == 781_734
