from dataclasses import fields, replace

from heterofl_flwr.core import Fidelity

QUIRKS = [field.name for field in fields(Fidelity)]


def test_one_word_sets_every_quirk_and_each_can_be_set_alone():
    assert Fidelity() == Fidelity.of("paper")
    assert {getattr(Fidelity.of("fixed"), name) for name in QUIRKS} == {"fixed"}
    for name in QUIRKS:
        assert Fidelity.of("paper", **{name: "fixed"}) == replace(Fidelity(), **{name: "fixed"}) != Fidelity()
