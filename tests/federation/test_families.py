"""Families: whose rates, names, plans and means are whose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr import Mix
from heterofl_flwr.core.assignment import dynamic_rate, fixed_rate
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.families import Families, side_by_side, under, with_families, within
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.nodes import Capability
from tests.federation.tiny import build, build_normed, equal

MIX = "a1-b1-c1-d1-e1"


def families_of(number, clients=0, mix=MIX, capacities=(), **options):
    builds = {f"family-{turn}": build for turn in range(number)}
    found = Families(builds, Federation(build=build, mix=Mix.parse(mix), **options))
    known = dict.fromkeys(range(clients)) | dict(enumerate(capacities))
    said = {
        node: Capability(partition=node, num_partitions=clients or None, capacity=own) for node, own in known.items()
    }
    found.register(said)
    return found


def rates_by_family(number, clients, mix=MIX, **options):
    found = families_of(number, clients, mix, **options)
    return found.split({node: found.rate(1, node) for node in range(clients)}).values()


@given(st.integers(1, 6), st.integers(1, 60), st.sampled_from([MIX, "a1-e1", "a1-e9", "b2-c3"]))
def test_each_family_has_the_mix_as_if_it_were_alone(number, clients, mix):
    for own in rates_by_family(number, clients, mix):
        alone = [fixed_rate(Mix.parse(mix), place, len(own)) for place in range(len(own))]
        assert list(own.values()) == alone
        assert not own or max(own.values()) == Mix.parse(mix).global_rate


def test_a_client_that_knows_its_rate_has_it():
    assert [own[node] for node, own in enumerate(rates_by_family(2, 2, capacities=(0.25, 0.3)))] == [0.25, 0.3]


def test_dynamic_rates_know_nothing_of_families():
    for family in rates_by_family(3, 20, assignment="dynamic"):
        for node, rate in family.items():
            assert rate == dynamic_rate(Mix.parse(MIX), seed=0, server_round=1, partition=node)


def test_the_joint_model_is_the_members_side_by_side():
    builds = {"one": build, "two": build_normed}
    like = Federation(build=lambda rate: side_by_side(builds, rate), mix=Mix.parse("a1-c1"))
    found = Families(builds, like)
    for rate in (1.0, 0.25):
        expected = {}
        for name, member in found.members.items():
            expected |= under(name, member.plan(rate).axes)
        assert found.plan(rate).axes == expected
    state = found.initial_state()
    assert all(equal(within(name, state), member.initial_state()) for name, member in found.members.items())
    assert found.rows == [
        "one.classifier.weight",
        "one.classifier.bias",
        "two.classifier.weight",
        "two.classifier.bias",
    ]


@given(st.dictionaries(st.text("ab.", max_size=4), st.integers(), max_size=4))
def test_values_go_under_a_name_and_back(values):
    both = under("a", values) | under("ab", {"x": 0})
    assert within("a", both) == values
    assert within("", values) == values


def test_what_is_said_of_families_models_has_plain_means():
    found = with_families({"one": {"global-loss": 1.0, "local-accuracy": 0.3}, "two": {"global-loss": 2.0}})
    assert found == {"global-loss": 1.5, "one/global-loss": 1.0, "one/local-accuracy": 0.3, "two/global-loss": 2.0}
    assert with_families({}) == {}


@pytest.mark.parametrize("names", [(), ("a.b",), ("a/b",), ("e",), ("1.0",), ("",)])
def test_names_that_would_be_mistaken_are_refused(names):
    with pytest.raises(ConfigError, match=r"families are named .* expected one name or more"):
        Families(dict.fromkeys(names, build), Federation(build=build, mix=Mix.parse(MIX)))
