from dataclasses import fields, replace

import pytest

from heterofl_flwr.core import Fidelity
from heterofl_flwr.errors import ConfigError

QUIRKS = [field.name for field in fields(Fidelity)]


@pytest.mark.parametrize("choice", ["paper", "fixed"])
def test_one_word_sets_every_quirk(choice):
    assert {getattr(Fidelity.of(choice), name) for name in QUIRKS} == {choice}


def test_the_default_is_the_paper():
    assert Fidelity() == Fidelity.of("paper") != Fidelity.of("fixed")


@pytest.mark.parametrize("name", QUIRKS)
def test_each_quirk_can_be_set_alone(name):
    single = Fidelity.of("paper", **{name: "fixed"})
    assert single == replace(Fidelity(), **{name: "fixed"}) != Fidelity()
    assert Fidelity.of("fixed", **{name: "paper"}) != Fidelity.of("fixed")


def test_unknown_quirks_are_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=f"no setting labels, mask; it has {', '.join(QUIRKS)}"):
        Fidelity.of("paper", mask="fixed", labels="fixed")


@pytest.mark.parametrize("value", ["", "Paper", None, True, ["paper"]])
def test_a_value_that_is_neither_is_refused(value):
    with pytest.raises(ConfigError, match=r"fidelity.moments is .*; expected one of paper, fixed"):
        Fidelity(moments=value)
    with pytest.raises(ConfigError, match=r"fidelity is .*; expected one of paper, fixed"):
        Fidelity.of(value)
