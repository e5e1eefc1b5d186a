from dataclasses import fields, replace

import pytest

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import Fidelity

QUIRKS = [field.name for field in fields(Fidelity)]


def test_one_word_sets_every_quirk_and_each_can_be_set_alone():
    assert Fidelity() == Fidelity.of("paper")
    assert {getattr(Fidelity.of("fixed"), name) for name in QUIRKS} == {"fixed"}
    for name in QUIRKS:
        assert Fidelity.of("paper", **{name: "fixed"}) == replace(Fidelity(), **{name: "fixed"}) != Fidelity()


def test_unknown_quirks_and_values_raise():
    with pytest.raises(TypeError, match=f"unexpected keyword argument, mask; it has {', '.join(QUIRKS)}"):
        Fidelity.of("paper", mask="fixed")
    for value in ("", "Paper", None, True, ["paper"]):
        with pytest.raises(ConfigError, match=r"Fidelity: moments is .*, expected one of paper, fixed$"):
            Fidelity(moments=value)
        with pytest.raises(ConfigError, match=r"encoder_init is .*, expected one of paper, fixed"):
            Fidelity.of(value)
