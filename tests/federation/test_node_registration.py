"""Waiting for clients, asking the new ones what they can hold, and asking nothing, or once, who does not evaluate."""

import math
import re
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import count

import pytest
from flwr.app import MetricRecord
from flwr.clientapp import ClientApp

from heterofl_flwr import Evaluation, Limits, LocalGrid
from heterofl_flwr.client import Task, answer_queries
from heterofl_flwr.client.queries import answer_capability, answer_moments
from heterofl_flwr.common.errors import RoundError
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.federation.capability import Capability
from heterofl_flwr.federation.nodes import Nodes
from heterofl_flwr.runs.checkpoint import load_checkpoint, save_checkpoint
from heterofl_flwr.strategies import node_registration
from heterofl_flwr.transport import messages
from tests.federation import tiny
from tests.federation.tiny import Watched, build, build_normed, config, judge, make_app, play


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(node_registration, "POLL_SECONDS", 0.05)


def run(app=None, nodes=3, mix="a1-c1", **options):
    return play(app, mix, nodes, **options).strategy


def arriving(*steps):
    """Return a grid type whose nodes arrive: at each look, as many as ``steps`` says; in the end all."""
    left = list(steps)
    return partial(Watched, present=lambda grid, ids: ids[: left.pop(0)] if left else ids)


def test_a_first_round_waits_for_all_nodes_of_a_simulation():
    found = play(None, "a1-c1", 6, grid=arriving(0, 2, 4))
    assert found.log.rates == {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.25, 4: 0.25, 5: 0.25}
    assert len(found.grid.of("query.capability")) == 6


def test_nodes_that_never_come_are_not_waited_for():
    began = time.monotonic()
    strategy = run(nodes=2, node_config=lambda partition: {"num-partitions": 100}, wait=600)
    assert strategy.log.rates == {0: 1.0, 1: 1.0}  # the first block of a hundred partitions
    assert time.monotonic() - began < 300


@pytest.mark.parametrize(("number", "nodes"), [(0, "0 nodes"), (1, "1 node")])
def test_too_few_nodes_end_the_run_in_time(number, nodes, caplog):
    caplog.set_level("INFO", "flwr")
    began = time.monotonic()
    with pytest.raises(RoundError, match=rf"{nodes} connected after 0.3 s, expected at least 2.*num-supern"):
        run(nodes=4, grid=arriving(*[number] * 50), wait=0.3)
    assert time.monotonic() - began < 120
    assert caplog.text.count(f"waiting up to 0.3 s for nodes: {number} connected, expected at least 2") == 1


def changing(*counts):
    """Return a type of grids of three named nodes: how many of them are there at first, and after each training."""

    def present(grid, ids):
        rounds = {message.content["config"]["server-round"] for message in grid.of("train")}
        return ids[: counts[min(len(rounds), len(counts) - 1)]]

    return partial(Watched, names="xyz", present=present)


def test_too_few_named_nodes_are_an_error_that_names_who_is_away_also_after_a_resume():
    start = r" connected after 0\.1 s, expected at least 2; away: "
    advice = r": start more of them \(flower-supernode; start_client for start_server\)"
    with pytest.raises(RoundError, match=rf"^1 node{start}y \(since round 2\), z \(since round 2\){advice}"):
        play(None, "a1", 3, 3, grid=changing(3, 1), wait=0.1)
    half = play(None, "a1", 3, 1, grid=partial(Watched, names="xyz"))
    resumed = {"start": {"resume": half.progress[-1]}, "grid": changing(0)}
    with pytest.raises(RoundError, match=rf"^0 nodes{start}x, y, z{advice}"):
        play(None, "a1", 3, 2, wait=0.1, **resumed)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({}, "min_available_nodes, sample.min-nodes, or min_available_clients in the classic API"),
        ({"min_train_nodes": 9}, "min_train_nodes, or min_fit_clients in the classic API"),
        (
            {"min_train_nodes": 9, "min_evaluate_nodes": 9},
            "min_train_nodes, or min_fit_clients in the classic API and min_evaluate_nodes, or min_evaluate_clients in "
            "the classic API",
        ),
    ],
)
def test_too_few_nodes_are_an_error_that_names_the_option_that_asked_for_more(asked, named):
    with pytest.raises(RoundError, match=rf"or ask for fewer \({re.escape(named)}\)$"):
        play(None, "a1", 1, 1, wait=0.1, **asked)


def test_a_node_that_comes_back_for_the_evaluation_is_not_away_in_the_rounds_record():
    first, second = play(None, "a1", 3, 2, grid=changing(3, 2, 3), evaluation=Evaluation()).records
    assert (first.away, first.notes) == ({"z": 1}, ("away: z (since round 1)",))
    assert (second.away, second.notes) == ({}, ())


def answers_of(*good):
    """Return a handler of queries for capability that these partitions alone can answer."""

    def capability(message, context):
        if context.node_config["partition-id"] in good:
            return answer_capability(message, context)
        raise KeyError("no such key")

    return capability


def test_where_nobody_says_what_it_can_hold_a_run_ends():
    with pytest.raises(RoundError, match="No query function registered with name 'capability'") as info:
        run(make_app(capability=None))
    said = str(info.value)
    assert re.match(r"node \d+ and 2 more: error 2: .*its ClientApp is not converted: let it call answer_queries", said)
    assert "the rate that a node can hold is known for 0 of 3 nodes, expected at least 2 (min_replies" in said
    assert "smallest rate, 0.25" in said


@pytest.mark.parametrize(
    ("good", "least", "needed"), [((0,), "auto", 2), ((0, 1), 3, 3), ((0,), 0.6, 2), ((0,), 1, 0), ((0, 1), "auto", 0)]
)
def test_with_fewer_answers_than_a_round_needs_it_ends(caplog, good, least, needed):
    app = make_app(capability=answers_of(*good))
    if needed:
        with pytest.raises(RoundError, match=rf"known for {len(good)} of 3 nodes, expected at least {needed} \(min_r"):
            run(app, min_replies=least)
        return
    rates = run(app, min_replies=least).log.rates
    assert rates == {0: 1.0, 1: 0.25, 2: 0.25}
    assert f"{3 - len(good)} of 3 new nodes gave no usable answer to the capability query" in caplog.text
    assert "is not converted" not in caplog.text
    assert "registered name" not in caplog.text  # the fault alone is the reason why a node has no number
    assert "no such key" in caplog.text
    assert "partition" not in re.search("gave no usable answer.*", caplog.text).group()  # theirs are not known


def test_a_node_without_a_usable_answer_that_fails_has_one_name():
    app = make_app(odd={2: tiny.crash}, capability=answers_of(0, 1))
    line = run(app).log.line()
    (name,) = re.findall(r"failed: (node \d+)", line)
    assert f"at the smallest rate: {name}" in line


def test_at_one_size_there_is_nothing_to_say():
    assert set(run(make_app(capability=None), mix="b1").log.rates.values()) == {0.5}


def test_whom_the_table_of_levels_names_need_not_say_anything():
    ids = dict.fromkeys(map(str, LocalGrid(make_app(), 3).get_node_ids()), "a")
    assert set(run(make_app(capability=None), limits=Limits(levels=ids)).log.rates.values()) == {1.0}


def leaving(leaves_at, returns_at=math.inf):
    """Return a grid type of which the first node is away as soon as it was first asked to do something of a kind."""

    def present(grid, ids):
        rounds = {message.content["config"]["server-round"] for message in grid.of(leaves_at)}
        return ids[1:] if rounds and max(rounds) < returns_at else ids

    return partial(Watched, present=present)


def test_who_comes_back_is_asked_again_what_it_can_hold():
    levels = {0: iter("ac"), 1: iter("a"), 2: iter("a")}

    def say(message, context):
        partition = context.node_config["partition-id"]
        return messages.answer(message, {"capacity": rate_of(next(levels[partition])), "partition": partition})

    grid = leaving("train", 2)
    records = play(make_app(capability=say), "a1-c1", 3, 3, grid=grid).records
    assert [record.rates.get(0) for record in records] == [1.0, None, 0.25]


def test_who_leaves_before_it_has_said_what_it_can_hold_is_forgotten():
    def say(message, context):
        if context.node_config["partition-id"] == 0:
            raise RuntimeError("the node ends")
        return answer_capability(message, context)

    found = play(make_app(capability=say), "a1-c1", 3, grid=leaving("query.capability"))
    assert (set(found.log.rates), found.log.failures) == ({1, 2}, {})


@pytest.mark.parametrize("before", [{}, {2: Capability(partition=1)}])
def test_who_comes_back_under_another_name_is_not_away(before):
    nodes = Nodes()
    nodes.update({1, 2}, {})
    nodes.register({1: Capability(partition=0), **before})
    nodes.update({1}, {}, 2)
    assert nodes.away.keys() == ({"partition 1"} if before else {"node 2"})
    nodes.update({1, 2}, {}, 3)
    nodes.register({2: Capability(partition=5)})
    assert nodes.away == {}
    assert nodes.changes[-1] == "back: partition 5, away since round 2"


def test_who_restarts_with_another_level_has_it_whatever_it_replied_before():
    nodes = Nodes()
    nodes.update({1}, {})
    nodes.register({1: Capability(capacity=1.0)})
    nodes.set_capacity(1, 0.25, rate=1.0)
    for queried, expected in ((1.0, 0.25), (0.5, 0.5), (1.0, 1.0)):
        nodes.register({1: Capability(capacity=queried)})
        assert nodes[1].capacity == expected


def test_who_fails_and_leaves_no_longer_counts_as_trained_when_another_takes_its_place():
    nodes = Nodes()
    nodes.update({1, 2}, {})
    nodes.register({1: Capability(partition=0), 2: Capability(partition=1)})
    nodes.trained |= {1, 2}
    nodes.failed.add(2)
    nodes.forget_failed()
    nodes.update({1, 3}, {})
    nodes.register({3: Capability(partition=1)})
    assert nodes.have_trained() == [0]


def test_names_of_nodes_that_are_not_there_are_warned_of(caplog):
    limits = Limits(levels={"d": "c", "phone": "c"}, partitions={"tablet": 7})
    play(make_app(capability=no_partition), "a1-c1", 4, grid=partial(Watched, names="dcba"), limits=limits)
    for said in ("levels names phone, and no present node", "partitions names tablet, and no present node"):
        assert said in caplog.text


def no_partition(message, context):
    return tiny.bare_reply(message, config=config())


@pytest.mark.parametrize(("grid", "warnings"), [(partial(Watched, names="dcba"), 0), (Watched, 1)])
def test_without_partitions_names_or_ids_order_the_nodes(grid, warnings, caplog):
    found = play(make_app(capability=no_partition), "a1-c1", 4, grid=grid)
    ids = list(found.grid.get_node_ids())
    ordered = sorted(ids) if warnings else ids[::-1]
    assert [found.federation.nodes.partition(node_id) for node_id in ordered] == [0, 1, 2, 3]
    said = "4 nodes without a registered name, and with no partition-id"
    assert caplog.text.count(said) == warnings
    assert (f"node {ordered[1]}: partition 1" in caplog.text) == bool(warnings)


def register(nodes, answers, present=None):
    nodes.update({*nodes.order, *answers} if present is None else present, {})
    nodes.register(answers)


class TestNodes:
    @pytest.mark.parametrize(
        ("first", "then", "present", "partitions"),
        [
            ({7: 1, 5: 0}, {3: 2}, [3, 5, 7], {5: 0, 7: 1, 3: 2}),  # a number stays with its node
            ({7: 0, 5: 1}, {9: 0}, [5, 9], {9: 0, 5: 1}),  # node 7 was started anew as 9
            ({7: None, 5: None, 6: None}, {1: None}, [1, 5, 7], {5: 0, 1: 1, 7: 2}),  # node 6 has left
            ({1: None, 2: 1, 3: None, 4: 5}, {}, [1, 2, 3, 4], {1: 0, 2: 1, 3: 2, 4: 5}),  # free ones are filled
        ],
    )
    def test_a_node_keeps_its_number_until_it_leaves(self, caplog, first, then, present, partitions):
        nodes = Nodes()
        for new, there in ((first, list(first)), (then, present)):
            register(nodes, {node: Capability(partition=own) for node, own in new.items()}, there)
            nodes.trained.update(new)
        assert {node: nodes.partition(node) for node in partitions} == partitions
        assert [node for node in first if node in nodes] == [node for node in first if node in present]
        assert nodes.trained == {*first, *then} & {*present}
        assert "says partition" not in caplog.text

    def test_who_was_away_for_a_moment_has_its_numbers_again(self):
        nodes, silent = Nodes(), {node: Capability() for node in range(4)}
        register(nodes, silent)
        nodes.seats.rates.update(dict.fromkeys(range(4), 0.5))
        nodes.forget([0, 1])
        register(nodes, {1: Capability()}, [1, 2, 3])
        register(nodes, {0: Capability()}, range(4))
        assert [(nodes.partition(own), nodes.seats[own], nodes.seats.rates[own]) for own in range(4)] == [
            (own, own, 0.5) for own in range(4)
        ]
        nodes.forget([1])
        register(nodes, {9: Capability(partition=1)}, [0, 2, 3, 9])
        register(nodes, {1: Capability()}, [0, 1, 2, 3, 9])
        assert [nodes.partition(own) for own in (9, 1)] == [1, 4]

    def test_parts_of_different_numbers_are_warned_of(self, caplog):
        nodes = Nodes()
        register(nodes, {node: Capability(partition=node, num_partitions=2) for node in range(2)})
        assert "different numbers of parts" not in caplog.text
        assert nodes.dealt() == 2
        register(nodes, {2: Capability(partition=2, num_partitions=3)})
        assert "nodes have the data in different numbers of parts (2, 3), so some data are in several" in caplog.text
        assert nodes.dealt() == 0

    def test_a_partition_is_that_of_the_first_node_that_says_it(self, caplog):
        nodes = Nodes()
        nodes.update({7, 4, 5, 6}, {7: "x", 5: "y"})
        for said in ({7: 0}, {6: 2, 5: 0, 4: 2}):
            nodes.register({node: Capability(partition=own) for node, own in said.items()})
        assert {node: nodes.partition(node) for node in nodes} == {7: 0, 4: 2, 5: 3, 6: 1}
        for warning in ("y says partition 0, which x has", "node 6 says partition 2, which node 4 has"):
            assert warning in caplog.text


def _data(context):
    return [tiny.inputs(context.node_config["partition-id"])]


def bare_app(*, evaluates=False, moments=False):
    """Return an app with a handler to train, and with no other but these."""
    app = ClientApp()
    answer_queries(app, build_normed, _data if moments else None)
    app.train()(lambda message, context: tiny.add_one(message, context, build=build_normed))
    if evaluates:
        app.evaluate()(lambda message, context: judge(message, context, build=build_normed))
    return app


def run_three(app, build=build, nodes=3, evaluate_fn=None, **options):
    """Return how often each kind of message was sent in each round, and the records."""
    options = {"evaluation": Evaluation(), "start": {"evaluate_fn": evaluate_fn}, **options}
    found = play(app, nodes=nodes, num_rounds=3, build=build, **options)
    sent = [message for message in found.grid.sent if message.metadata.message_type != "query.capability"]
    return Counter((m.metadata.message_type, m.content["config"]["server-round"]) for m in sent), found.records


def test_with_a_fraction_of_none_the_server_evaluates_alone():
    options = {"evaluate_fn": lambda number, arrays: MetricRecord({"global-accuracy": number / 10})}
    sent, records = run_three(make_app(build=build_normed), build_normed, fraction_evaluate=0.0, **options)
    assert {kind for kind, _ in sent} == {"train"}
    assert [record.evaluate for record in records] == [{"global-accuracy": number / 10} for number in (1, 2, 3)]
    assert all(not record.evaluate_failures and not record.partial for record in records)


def test_an_app_without_evaluate_trains_and_the_log_says_what_it_lacks(caplog):
    _, records = run_three(bare_app(), build_normed, evaluation=Evaluation(static_norm=False), grid=silent(names="xyz"))
    assert [len(record.rates) for record in records] == [3, 3, 3]
    assert (records[-1].failures, records[-1].names) == ({}, {0: "x", 1: "y", 2: "z"})
    assert "No evaluate function registered" in records[-1].evaluate_failures[0]
    assert "round 1: x did not evaluate: " in caplog.text
    assert "only 0 of 3 clients evaluated" in caplog.text
    assert "fraction_evaluate=0.0" in caplog.text


def test_an_app_without_moments_is_asked_once_and_evaluates(caplog):
    sent, records = run_three(bare_app(evaluates=True), build_normed)
    assert (sent["query.moments", 1], sent["query.moments", 2]) == (3, 0)
    assert [sent["evaluate", number] for number in (1, 2, 3)] == [3, 3, 3]
    assert caplog.text.count("Evaluation(static_norm=False)") == 1
    assert records[-1].evaluate["coverage"] == 1.0


def test_an_app_without_moments_in_a_later_round_is_asked_again_and_the_log_says_no_other(caplog):
    def sometimes(message, context):
        if message.content["config"]["server-round"] == 2:
            return messages.answer(message, {})
        batches = [tiny.inputs(context.node_config["partition-id"])]
        return answer_moments(Task(message, context, build_normed), lambda: batches)

    sent, _ = run_three(make_app(build=build_normed, moments=sometimes), build_normed)
    assert [sent["query.moments", number] for number in (1, 2, 3)] == [3, 3, 3]
    assert "batch norm normalises by batch in this evaluation" in caplog.text
    assert "not asked again" not in caplog.text


def is_query(message):
    return message.metadata.message_type == "query.capability"


def silent(*pairs, names=""):
    """Return a grid type of which some nodes do not answer some queries: ``pairs`` of partition and round."""

    def lost(grid, message):
        number = message.content["config"]["server-round"]
        return is_query(message) and (grid.partition_of(message), number) in pairs

    return partial(Watched, names=names, lost=lost)


def test_a_silent_node_is_left_out_and_asked_again(caplog):
    levels = {"node_config": lambda partition: {"level": "abc"[partition], "partition-id": partition}}
    found = play(None, "a1-b1-c1", 3, 4, grid=silent((0, 1), (0, 2), names="xyz"), **levels)
    assert [record.rates for record in found.records] == [{1: 0.5, 2: 0.25}] * 2 + [{0: 1.0, 1: 0.5, 2: 0.25}] * 2
    assert [(record.answered, record.expected) for record in found.records] == [(2, 3)] * 2 + [(3, 3)] * 2
    assert "clients=2/3" in found.records[1].line()
    assert "no answer to the capability query: x" in found.records[1].line()
    assert found.records[1].unanswered == ("x",)
    assert "smallest" not in caplog.text + found.records[3].line()


@pytest.mark.parametrize("names", ["", "xyz"])
def test_a_silent_node_lowers_the_coverage(names):
    levels = {"node_config": lambda partition: {"partition-id": partition}, "evaluation": Evaluation()}
    found = play(None, "a1", 3, 2, grid=silent((0, 1), names=names), **levels)
    assert [record.evaluate["coverage"] for record in found.records] == [pytest.approx(2 / 3), 1.0]


def test_a_resumed_run_with_a_silent_node_is_the_uninterrupted_one():
    lost, options = [(2, 1), (2, 2), (0, 4)], {"fraction_train": 0.7, "node_config": lambda own: {"partition-id": own}}
    whole = play(None, "a1-c1", 4, 4, grid=silent(*lost), **options)
    half = play(None, "a1-c1", 4, 2, grid=silent(*lost), **options)
    again = play(None, "a1-c1", 4, 4, grid=silent(*lost[:2]), start={"resume": half.progress[-1]}, **options)
    assert [record.rates for record in again.records] == [record.rates for record in whole.records[2:]]
    assert tiny.equal(again.state, whole.state)


def test_silent_nodes_do_not_end_a_run_until_too_few_are_left():
    lost = [(own, number) for own in (0, 1, 2) for number in (1, 2)]
    assert play(None, "a1-c1", 5, 2, grid=silent(*lost)).log.answered == 2
    with pytest.raises(RoundError, match=r"2 of 5 connected nodes answered the capability query, expected at le"):
        play(None, "a1-c1", 5, 2, grid=silent(*lost), min_available_nodes=3, wait=0.2)


def test_where_no_node_that_was_drawn_answers_the_error_names_them():
    grid = silent(*[(own, 2) for own in range(4)], (0, 1), (2, 1), names="wxyz")
    with pytest.raises(RoundError, match=r"0 of 2 sampled nodes answered .* no answer of w, y: .*see the logs"):
        play(None, "a1", 4, 2, grid=grid, fraction_train=0.5, wait=0.1)


def test_a_round_waits_for_one_of_the_nodes_that_were_drawn():
    looks = count(1)
    grid = partial(Watched, names="wxyz", lost=lambda grid, message: is_query(message) and next(looks) < 6)
    found = play(None, "a1", 4, grid=grid, fraction_train=0.5)
    assert found.log.answered == 1
    assert "clients=1/2" in found.log.line()
    assert "; no answer to the capability query: " in found.log.line()


def test_who_leaves_joins_and_comes_back_is_named(caplog):
    caplog.set_level("INFO")
    grid = leaving("train", 3)
    found = play(None, "a1", 4, 4, grid=grid)
    assert [record.away for record in found.records] == [{}, {"partition 0": 2}, {"partition 0": 2}, {}]
    assert ["away: partition 0 (since round 2)" in record.notes for record in found.records] == [
        False,
        True,
        True,
        False,
    ]
    assert [(record.answered, record.expected) for record in found.records] == [(4, 4), (3, 4), (3, 4), (4, 4)]
    said = [record.getMessage() for record in caplog.records if record.name == "flwr"]
    assert [line for line in said if "away: " in line and "clients" not in line] == ["round 2: away: partition 0"]
    assert "round 4: back: partition 0, away since round 2" in said


def test_named_nodes_are_asked_when_they_are_drawn():
    names = [f"n{9 - number}" for number in range(10)]
    found = play(None, "a1-c1", 10, 3, grid=silent(names=names), fraction_train=0.2)
    asked = [found.grid.partition_of(own) for own in found.grid.of("query.capability")]
    drawn = [own for record in found.records for own in record.rates]
    assert asked == list(dict.fromkeys(asked))
    assert {*asked} == {*drawn}
    assert len(drawn) == 6
    half = play(None, "a1-c1", 10, 1, grid=silent(names=names), fraction_train=0.2)
    again = play(
        None, "a1-c1", 10, 3, grid=silent(names=names), fraction_train=0.2, start={"resume": half.progress[-1]}
    )
    assert tiny.equal(again.state, found.state)


def test_all_are_asked_in_windows_where_partitions_order_them(monkeypatch):
    monkeypatch.setattr(node_registration, "WINDOW", 4)
    sizes = []

    class Sized(Watched):
        def send_and_receive(self, sent, *, timeout=None):
            sizes.append((sent[0].metadata.message_type, len(sent)))
            return super().send_and_receive(sent, timeout=timeout)

    play(None, "a1", 10, grid=Sized, fraction_train=0.2)
    assert sizes == [("query.capability", 4), ("query.capability", 4), ("query.capability", 2), ("train", 2)]


def test_a_resumed_run_names_nodes_that_left_meanwhile(tmp_path):
    run = partial(play, None, "a1", node_config=lambda _: {"num-partitions": 4})
    state = run(3, 2, grid=partial(Watched, names="abc")).progress[-1]
    save_checkpoint(tmp_path, replace(state, nodes={**state.nodes, "d": 1}))
    resumed = run(2, 3, grid=partial(Watched, names="ac"), start={"resume": load_checkpoint(tmp_path)})
    assert resumed.log.away == {"b": 3, "d": 1}
    assert (resumed.log.answered, resumed.log.expected) == (2, 4)


def test_a_resumed_run_gives_named_nodes_the_seats_that_they_had(tmp_path):
    """Nodes were seated anew by name: they got other levels and partitions, and layers of theirs counted as lost."""
    app = make_app(capability=lambda message, context: messages.answer(message, {}))
    run, named = partial(play, app, "a1-b1-c1", 4), partial(Watched, names="abcd")
    late = partial(named, present=lambda grid, ids: ids if grid.of("train") else ids[1:])  # the first node
    whole, half = run(num_rounds=3, grid=late), run(num_rounds=2, grid=late)
    save_checkpoint(tmp_path, half.progress[-1])
    again = run(num_rounds=3, grid=named, start={"resume": load_checkpoint(tmp_path)})
    assert (again.log.rates, again.log.names) == (whole.log.rates, whole.log.names)
    assert list(whole.log.names.values()) == ["b", "c", "d", "a"]
    assert tiny.equal(again.state, whole.state)
    assert again.progress[-1].seats == whole.progress[-1].seats
