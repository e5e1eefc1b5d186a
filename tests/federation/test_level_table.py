"""Levels: what a node says changes no other's, and what the server's table and bound say of them."""

import re
from functools import partial

import pytest
from hypothesis import given, strategies as st

from heterofl_flwr import Evaluation, HeteroFL, Limits, Mix, Slicing
from heterofl_flwr.client import Task
from heterofl_flwr.client.queries import answer_capability
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.federation.capability import Capability
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.global_model import GlobalModel
from heterofl_flwr.federation.options import Options
from tests.federation.tiny import Watched, add_one, build, make_app, play

MIXES = ["a1-b1-c1-d1-e1", "a1-e1", "a1-e9", "b2-c3"]
NEVER = Evaluation(every=0)
WIDTHS = st.sampled_from([1.0, 0.5, 0.25, 0.125, 0.0625])
WORDS = st.builds(
    Capability,
    capacity=st.none() | WIDTHS,
    partition=st.none() | st.integers(0, 12) | st.just(10**6),
    num_partitions=st.none() | st.integers(1, 12) | st.just(10**6),
)
SILENT = Capability()


def federation_of(mix="a1-e1", limits=None, assignment="fix"):
    options = Options(limits=limits or Limits(), slicing=Slicing(assignment=assignment))
    return Federation(GlobalModel(build, Mix.parse(mix), options))


def levels_of(federation, node_ids, server_round=1):
    return {node: federation.levels.rate(server_round, node) for node in node_ids if federation.levels.can_train(node)}


@given(
    st.data(),
    st.sampled_from(MIXES),
    st.sampled_from(["fix", "dynamic"]),
    st.lists(WORDS, min_size=2, max_size=12),
    st.lists(WORDS, max_size=4),
)
def test_no_lie_of_any_node_changes_the_level_of_another(data, mix, assignment, early, late):
    """Nodes come in two batches and one may leave in between, the liar too; the levels are those without its claim."""
    said = dict(enumerate([*early, *late]))
    liar, leaver = (data.draw(st.integers(0, len(early) - 1)) for _ in range(2))
    names = {node: data.draw(st.sampled_from(["", f"n{50 - node}"])) for node in said}
    found = []
    for word in (said[liar], SILENT):
        federation, answers = federation_of(mix, assignment=assignment), {**said, liar: word}
        federation.levels.update_nodes(range(len(early)), names)
        federation.register({node: answers[node] for node in range(len(early))})
        first = levels_of(federation, range(len(early)))
        there = [node for node in said if node != leaver]
        federation.levels.update_nodes(there, names)
        federation.register({node: answers[node] for node in range(len(early), len(said))})
        found.append([first, levels_of(federation, there)])
    assert [{**own, liar: 0} for own in found[0]] == [{**own, liar: 0} for own in found[1]]


@given(st.sampled_from(MIXES), st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=30))
def test_under_fix_a_node_keeps_its_level_whoever_comes_and_goes(mix, moves):
    federation, there, before = federation_of(mix), [], {}
    for number, (comes, which) in enumerate([(True, 0), *moves]):
        if comes or not there:
            there.append(number)
        else:
            there.remove(sorted(there)[which % len(there)])
        federation.levels.update_nodes(there, {})
        federation.register({number: SILENT} if number in there else {})
        after = levels_of(federation, there)
        assert all(after[node] == before[node] for node in there if node in before)
        before = after


@pytest.mark.parametrize("assignment", ["fix", "dynamic"])
@pytest.mark.parametrize(("level", "untrained"), [("e", 68 - 12), ("b", 68 - 36), ("a", 0)])
def test_a_model_that_nobody_can_hold_is_warned_of(caplog, assignment, level, untrained):
    play(mix="a1-b1-e1", nodes=4, assignment=assignment, node_config=lambda _: {"level": level}, num_rounds=2)
    said = re.findall(r"(\d+) of its 68 parameters are never trained", caplog.text)
    assert said == ([str(untrained)] if untrained else [])


def rates(limits, said=("c", "a", "a"), mix="a1-b1-e1", capacity=None, num_rounds=1, **options):
    def train(message, context):
        return (task := Task(message, context, build)).reply(task.model(), num_examples=1, capacity=capacity)

    node_config = [{"level": level} if level else {} for level in said].__getitem__
    options |= {"limits": limits, "grid": partial(Watched, names=("alice", "bob", "carol")), "node_config": node_config}
    log = play(make_app(train), mix, 3, num_rounds, **options).log
    assert log.names == {0: "alice", 1: "bob", 2: "carol"}
    return list(log.rates.values())


def test_the_table_bounds_its_nodes_and_a_level_the_others(caplog):
    limits = Limits(levels={"alice": "b", "bob": "0.25"}, largest_level="e")
    assert rates(limits) == [0.25, 0.25, 0.0625]
    assert rates(limits, said=(None, "z", "e"))[:2] == [0.5, 0.25]
    caplog.clear()
    rates(limits)
    warned = [record.getMessage() for record in caplog.records if "by the server's levels" in record.getMessage()]
    assert sorted(warned) == [
        "node bob gets rate 0.25 by the server's levels, in place of 1",
        "node carol gets rate 0.0625 by the server's levels, in place of 1",
    ]


def test_a_node_id_may_be_a_number_as_flower_has_it():
    assert Limits(levels={7516684689646712787: "b"}).levels == {"7516684689646712787": "b"}


@pytest.mark.parametrize(("said", "warns"), [(("c", "a", "a"), False), (("c", "a", None), True)])
def test_only_nodes_that_get_their_level_from_the_mix_are_too_few_for_it(caplog, said, warns):
    rates(Limits(), said, mix="a1-b1-c1-d1", assignment="fix")
    assert ("3 clients for the 4 parts of the mix" in caplog.text) == warns


def test_dynamic_draws_among_what_the_table_and_the_bound_allow():
    limits, rounds = Limits(levels={"alice": "a"}, largest_level="b"), 8
    federation = federation_of("a1-b1-c1", assignment="dynamic", limits=limits)
    federation.levels.update_nodes(range(3), {0: "alice"})
    federation.register(dict.fromkeys(range(3), SILENT))
    drawn = [levels_of(federation, range(3), server_round) for server_round in range(1, rounds + 1)]
    assert {own[0] for own in drawn} == {1.0, 0.5, 0.25}
    assert {rate for own in drawn for node, rate in own.items() if node} == {0.5, 0.25}


@pytest.mark.parametrize("assignment", ["fix", "dynamic"])
@pytest.mark.parametrize(("reported", "expected"), [("a", [0.5, 0.25, 0.25]), ("e", [0.0625] * 3)])
def test_a_later_report_may_lower_a_level_only(reported, expected, assignment):
    limits, mix = Limits(levels={"alice": "b"}, largest_level="c"), "a1-b1-c1-e1"
    found = rates(limits, mix=mix, capacity=reported, num_rounds=2, assignment=assignment)
    if assignment == "fix":
        assert found == expected
    assert all(rate <= most for rate, most in zip(found, expected, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_a_node_that_was_restarted_with_a_smaller_level_trains_at_it(fails):
    """It was not away when a round began, so that the server saw no restart."""
    levels, asked = ["a", "b"], []

    def restarted(handle, message, context):
        context.node_config["level"] = levels[context.node_config["partition-id"]]
        return handle(message, context)

    def train(message, context):
        if context.node_config["partition-id"] == 1:
            asked.append(Task(message, context, build).rate)
            levels[1] = "c"
            if fails and asked[-1] > 0.25:
                raise MemoryError
        return restarted(add_one, message, context)

    app = make_app(train, capability=partial(restarted, answer_capability))
    assert play(app, "a1-b1-c1", 2, 3).log.failures == {}
    assert asked == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("mix", "levels", "named"),
    [
        (
            "a1",
            {"levels": {"bob": "q"}, "largest_level": 2},
            "levels: 'q' is no level.*; largest_level: 2.0 is no level",
        ),
        ("a1", {"levels": "phone"}, "levels is 'phone', expected different names with a level each"),
        ("b1-e1", {"levels": {"bob": "a"}}, "levels: bob above the mix's largest level, b: expected levels within"),
        (
            "a1-c1",
            {"levels": {"bob": "e"}, "largest_level": "d"},
            "bob, largest_level below the mix's smallest level, c",
        ),
    ],
)
def test_a_table_that_cannot_be_is_one_error_at_the_start(mix, levels, named):
    with pytest.raises(ConfigError, match=named):
        HeteroFL(build, mix, slicing=Slicing(assignment="dynamic"), limits=Limits(**levels))


def test_a_partition_belongs_to_the_registered_name():
    federation = federation_of("a1-b1", limits=Limits(partitions={"carol": 0, "dave": 1}))
    said = {7: Capability(partition=0), 8: Capability(), 9: Capability(partition=5)}
    federation.levels.update_nodes(said, {7: "alice", 8: "bob", 9: "carol"})
    federation.register(said)
    assert [federation.nodes.partition(node) for node in (7, 8, 9)] == [2, 3, 0]
    federation.levels.update_nodes({*said, 10}, {10: "dave"})
    federation.register({10: Capability()})
    assert federation.nodes.partition(10) == 1
