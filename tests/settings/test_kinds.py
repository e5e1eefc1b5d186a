"""What a value can be, kind by kind."""

import math

import pytest

from heterofl_flwr.core.levels import Mix
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings import kinds

NAN = math.nan
INF = math.inf

GOOD = [
    (kinds.integer(1), 1, 1),
    (kinds.number(), -2.5, -2.5),
    (kinds.number(least=0), 0, 0.0),
    (kinds.number(above=0, most=1), 1, 1.0),
    (kinds.flag(), True, True),
    (kinds.choice("a", "-inf", ""), "-inf", "-inf"),
    (kinds.choice("a", "-inf", ""), "", ""),
    (kinds.split(), "iid", "iid"),
    (kinds.split(), "non-iid-2", "non-iid-2"),
    (kinds.split(), "dirichlet-0.3", "dirichlet-0.3"),
    (kinds.path(), "/a b/c", "/a b/c"),
    (kinds.reference(), "a.b:c", "a.b:c"),
    (kinds.reference(), "", ""),
    (kinds.integers(""), "64,128", (64, 128)),
    (kinds.integers(""), " 64 , 128 ", (64, 128)),
    (kinds.integers(""), "", ()),
    (kinds.integers(""), 100, (100,)),
    (kinds.integers("", ascending=True), "1,2,30", (1, 2, 30)),
    (kinds.words(""), "tensorboard,my.module:Thing", ("tensorboard", "my.module:Thing")),
    (kinds.words(""), "", ()),
    (kinds.mix(), "a1-e9", Mix((1.0, 0.0625), (1, 9))),
    (kinds.level(), "c", "c"),
    (kinds.level(), 0.3, "0.3"),
    (kinds.levels(), "", ()),
    (kinds.levels(), " phone = c,camera=0.3", (("phone", "c"), ("camera", "0.3"))),
]

BAD = [
    (kinds.integer(1), [0, -1, 1.0, True, "1"]),
    (kinds.number(), ["1", True, NAN, INF, -INF, 10**400, -(10**400)]),
    (kinds.number(least=0), [-1e-9]),
    (kinds.number(above=0, most=1), [0, 1.0001]),
    (kinds.flag(), [1, 0, "true"]),
    (kinds.choice("a", "-inf"), ["b", "", "a\n", 1, "A"]),
    (kinds.split(), ["", "non-iid-0", "dirichlet-0", "IID", 2]),
    (kinds.path(), ["a\0b", 3]),
    (kinds.reference(), ["a", "a:", ":b", "1:b", "a b:c"]),
    (kinds.integers(""), ["64,", "0", "-1", "1.5", "a", 0, -3, 1.5, True]),
    (kinds.integers("", ascending=True), ["2,1", "3,3"]),
    (kinds.words(""), ["a,a", "a,,b", "a b", 3]),
    (kinds.mix(), ["a1-q1", "", 1]),
    (kinds.level(), ["", "q", 0, 2.0, True]),
    (kinds.levels(), ["phone", "=c", "phone=", "phone=q", "phone=c,", "phone=c,phone=a", 3]),
]


def refuses(kind, flat) -> bool:
    try:
        kind.read(flat)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize(("kind", "flat", "value"), GOOD)
def test_a_good_value_is_read_and_written_so_that_it_is_read_again(kind, flat, value):
    read = kind.read(flat)
    assert (read, type(read)) == (value, type(value))
    assert kind.read(kind.write(value)) == value
    assert isinstance(kind.write(value), bool | int | float | str)


@pytest.mark.parametrize(("kind", "flat"), [(kind, flat) for kind, flats in BAD for flat in flats])
def test_a_bad_value_is_refused(kind, flat):
    assert refuses(kind, flat)


def test_what_is_expected_is_said_in_words():
    assert kinds.number(above=0, most=1).expected == "a number above 0 and up to 1"
    assert kinds.number(least=0).expected == "a number of 0 or more"
    assert kinds.number().expected == "a number"
    assert kinds.integer(2).expected == "an integer of 2 or more"
    assert kinds.choice("paper", "").expected == "one of paper, ''"


def test_what_knows_more_says_more():
    with pytest.raises(ConfigError, match="'q' is no level"):
        kinds.mix().read("a1-q1")
    with pytest.raises(ConfigError, match="non-iid-<classes per client>"):
        kinds.split().read("shards")
