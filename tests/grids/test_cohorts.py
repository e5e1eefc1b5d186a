"""Clients that train together: which, the same on any number of actors, and one bad client costs no other."""

import logging
import time
from collections import Counter, defaultdict
from contextlib import nullcontext

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import given, strategies as st

from heterofl_flwr.grids import LocalGrid, RayGrid, Windowed
from heterofl_flwr.grids.queued import together as grouped
from heterofl_flwr.transport.compat import ErrorCode

RATES = (1.0, 0.5, 0.5, 1.0, 0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.25)
GROUPS = [[0, 3, 6], [1, 2, 4], [5, 7, 8, 9], [10]]  # at most four
GROUPS_IN_SIX = [[0, 3], [1, 2, 4, 5], [6], [7, 8], [9], [10]]  # with a window: the first six, then three, then two


def cost(message):
    return {0.5: 2.0, 1.0: 4.0, 0.25: 1.0}[message.content["config"]["rate"]] if "config" in message.content else 0.0


@pytest.fixture(scope="module")
def pool(machine):
    """Return a grid of eleven nodes whose clients train together, in two actors."""
    with RayGrid("cohort_clients:app", len(RATES), at_once=2, cohort=4, cost=cost) as grid:
        yield grid


on_ray = [pytest.mark.simulation, pytest.mark.slow]


@pytest.fixture(params=["inline", pytest.param("actors", marks=on_ray)])
def together(request):
    """Return such a grid, in this process or in actors."""
    if request.param == "actors":
        yield request.getfixturevalue("pool")
    else:
        with LocalGrid("cohort_clients:app", len(RATES), cohort=4) as grid:
            yield grid


def sent_to(grid, rates=RATES, start=2.0, changes=None):
    """Return a message to each node, with what is said of some partitions besides."""
    draw = np.random.default_rng(0)
    messages = []
    for partition, (node_id, rate) in enumerate(zip(grid.get_node_ids(), rates, strict=False)):
        arrays = ArrayRecord({"w": Array((start + draw.random(1000)).astype(np.float32))})
        config = ConfigRecord({"rate": rate, **(changes or {}).get(partition, {})})
        messages.append(Message(RecordDict({"arrays": arrays, "config": config}), node_id, "train"))
    return messages


def groups_of(grid, replies):
    """Return the partitions that trained together, by each reply."""
    partitions = {node_id: partition for partition, node_id in enumerate(grid.get_node_ids())}
    return [[partitions[node_id] for node_id in reply.content["config"]["with"]] for reply in replies]


def bits(replies):
    return [reply.content["arrays"]["w"].data for reply in replies]


@pytest.mark.slow
@pytest.mark.simulation
def test_any_number_of_actors_gives_the_same_bits(pool):
    def rounds(made, window):
        with made as grid:
            through = Windowed(grid, window) if window else grid
            replies = [list(through.send_and_receive(sent_to(grid, start=start))) for start in (2.0, 3.0)]
            return [bits(each) for each in replies], [groups_of(grid, each) for each in replies]

    one = RayGrid("cohort_clients:app", len(RATES), at_once=1, cohort=4)
    for window, groups, actors in ((0, GROUPS, nullcontext(pool)), (6, GROUPS_IN_SIX, one)):
        inline = rounds(LocalGrid("cohort_clients:app", len(RATES), cohort=4), window)
        assert inline[1] == [[next(group for group in groups if own in group) for own in range(len(RATES))]] * 2
        assert rounds(actors, window) == inline


def test_only_the_client_that_raises_fails(together, caplog):
    before = [reply.content["config"]["times"] for reply in together.send_and_receive(sent_to(together))]
    with caplog.at_level(logging.WARNING):
        replies = list(together.send_and_receive(sent_to(together, changes={2: {"fault": "raise"}})))
    assert [partition for partition, reply in enumerate(replies) if reply.has_error()] == [2]
    assert replies[2].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert replies[2].error.reason == "<class 'ZeroDivisionError'>:<'alone too'>"
    good = [(partition, reply) for partition, reply in enumerate(replies) if partition != 2]
    groups = dict(zip([partition for partition, _ in good], groups_of(together, [r for _, r in good]), strict=True))
    assert [groups[1], groups[4]] == [[1], [4]]  # alone
    assert [groups[0], groups[5]] == [[0, 3, 6], [5, 7, 8, 9]]
    # The attempt together left no trace in the nodes' states.
    assert [reply.content["config"]["times"] for _, reply in good] == [before[partition] + 1 for partition, _ in good]


@pytest.mark.slow
@pytest.mark.simulation
def test_actors_share_gpus_and_the_clients_of_a_push_are_divided_among_them(machine):
    with RayGrid("gpu_cohorts:app", len(RATES), at_once=3, cohort=50, by_rate=False, num_gpus=0.5) as grid:
        groups = groups_of(grid, grid.send_and_receive(sent_to(grid)))
        gpus: dict[int, str] = {}
        while len(gpus) < 3:  # the first answers before the others are there
            replies = grid.send_and_receive(
                [Message(RecordDict(), node_id, "query") for node_id in grid.get_node_ids()]
            )
            gpus |= {reply.content["config"]["pid"]: reply.content["config"]["gpu"] for reply in replies}
    assert groups == [[0, 1, 2]] * 3 + [[3, 4, 5, 6]] * 4 + [[7, 8, 9, 10]] * 4
    assert sorted(Counter(gpus.values()).values()) == [1, 2]


@pytest.mark.parametrize("answers", ["too few", "none", "astray"])
def test_wrong_answers_of_a_cohort_are_not_taken(answers, monkeypatch, caplog):
    import cohort_clients

    def train_cohort(messages, contexts):
        if answers == "none":
            return [None for _ in messages]
        replies = [Message(RecordDict(), reply_to=message) for message in messages]
        return replies[1:] if answers == "too few" else replies[::-1]

    monkeypatch.setattr(cohort_clients.app, "train_cohort", train_cohort, raising=False)
    with LocalGrid(cohort_clients.app, 3, cohort=4) as grid:
        assert groups_of(grid, grid.send_and_receive(sent_to(grid, (1.0,) * 3))) == [[0], [1], [2]]
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "3 messages are answered one by one, because together they failed: " in warning
    assert "Error: the ClientApp" in warning
    assert "Traceback" not in warning  # which 'heterofl run' prints; the traceback is in the log


@pytest.mark.slow
@pytest.mark.simulation
def test_a_client_that_kills_its_actor_is_an_error_of_its_group(pool, monkeypatch):
    monkeypatch.setattr("heterofl_flwr.grids.ray_dispatch.RETRIES", 0)
    before = list(pool.get_node_ids())
    replies = list(pool.send_and_receive(sent_to(pool, changes={3: {"fault": "die"}})))
    assert [partition for partition, reply in enumerate(replies) if reply.has_error()] == [0, 3, 6]
    assert {replies[partition].error.code for partition in (0, 3, 6)} == {ErrorCode.CLIENT_APP_CRASHED}
    names = ", ".join(sorted(f"node {before[partition]} (partition {partition})" for partition in (0, 3, 6)))
    assert replies[6].error.reason.startswith(f"The process that ran {names} died: ")
    assert not any(reply.has_error() for reply in pool.send_and_receive(sent_to(pool)))


@pytest.mark.slow
@pytest.mark.simulation
def test_a_reply_that_cannot_be_sent_back_fails_alone(pool):
    replies = list(pool.send_and_receive(sent_to(pool, changes={4: {"fault": "unsendable"}})))
    assert [partition for partition, reply in enumerate(replies) if reply.has_error()] == [4]
    assert "pickle" in replies[4].error.reason


def test_a_local_group_runs_when_a_reply_is_asked_for():
    with LocalGrid("cohort_clients:app", len(RATES), cohort=4) as grid:
        ids = list(grid.push_messages(sent_to(grid)))
        assert groups_of(grid, grid.pull_messages([ids[3]])) == [[0, 3, 6]]
        assert grid.wait_for_replies(ids, timeout=0.0) == [ids[0], ids[6]]  # what is there without running anybody
        assert len(list(grid.pull_messages(ids))) == len(ids) - 1


def test_a_group_goes_on_for_those_who_are_waited_for(together):
    ids = list(together.push_messages(sent_to(together, changes={0: {"seconds": 0.3}})))
    time.sleep(0.1)
    together.cancel([ids[0], ids[3]])
    assert together.wait_for_replies([ids[6]]) == [ids[6]]
    assert groups_of(together, together.pull_messages([ids[6]])) == [[0, 3, 6]]  # as without the cancellation
    assert together.wait_for_replies([ids[0], ids[3]], timeout=0.0) == []
    together.cancel(ids)


@pytest.mark.slow
@pytest.mark.simulation
def test_groups_that_together_take_longest_begin_first(pool):
    rates = (0.25, 0.5, 0.5, 0.5, 1.0, 1.0)  # in groups that cost 1, 6 and 8
    began: dict[int, float] = {}
    for reply in pool.send_and_receive(sent_to(pool, rates, changes={own: {"seconds": 0.1} for own in range(6)})):
        began.setdefault(len(reply.content["config"]["with"]), reply.content["config"]["began"])
    assert max(began[3], began[2]) < began[1]


def test_nodes_with_several_messages_are_answered_in_order(together):
    first, second = list(together.get_node_ids())[:2]
    # Were they grouped by rate alone, each of the two groups would wait for the other.
    ahead, again = sent_to(together, (1.0, 0.5)), sent_to(together, (0.5, 1.0))
    replies = list(together.send_and_receive([ahead[0], again[0], ahead[1], again[1]], timeout=300))
    assert [reply.metadata.src_node_id for reply in replies] == [first, first, second, second]
    times = [reply.content["config"]["times"] for reply in replies]
    assert times[1] == times[0] + 1
    assert times[3] == times[2] + 1


pytestmark = pytest.mark.usefixtures("identity")


def message(node_id, rate, kind="train"):
    return Message(RecordDict({"config": ConfigRecord({} if rate is None else {"rate": rate})}), node_id, kind)


def shown(groups):
    return [[one.metadata.dst_node_id for one in group] for group in groups]


def test_a_rate_is_shared_out_evenly_in_the_order_sent():
    messages = [message(node_id, 1.0 if node_id % 2 else 0.5) for node_id in range(2, 15)]
    assert shown(grouped(messages, lambda one: 5)) == [[2, 4, 6], [8, 10, 12, 14], [3, 5, 7], [9, 11, 13]]


def test_rates_are_mixed_where_they_may_be():
    messages = [message(node_id, 1.0 if node_id % 2 else 0.5) for node_id in range(2, 9)] + [message(9, None)]
    assert shown(grouped(messages, lambda one: 4, by_rate=False)) == [[2, 3, 4], [5, 6, 7, 8], [9]]


def test_what_has_no_rate_or_is_no_training_stays_alone():
    others = [message(2, None), message(3, None), message(4, 1.0, "evaluate"), message(5, 1.0, "train.other")]
    others += [message(6, "1.0"), Message(RecordDict(), 7, "train")]
    groups = shown(grouped([*others, message(8, 1.0), message(9, 1.0)], lambda one: 9))
    assert groups == [[2], [3], [4], [5], [6], [7], [8, 9]]


def test_how_many_may_be_together_can_depend_on_the_message():
    messages = [message(node_id, rate) for node_id, rate in enumerate([1.0] * 4 + [0.5] * 4, 2)]
    of_rate = {1.0: 1, 0.5: 3}
    groups = grouped(messages, lambda one: of_rate[one.content["config"]["rate"]])
    assert shown(groups) == [[2], [3], [4], [5], [6, 7], [8, 9]]
    assert len(grouped(messages[:4], lambda one: 1 if one is messages[2] else 4)) == 4  # the smallest counts


@given(st.lists(st.tuples(st.integers(2, 9), st.sampled_from([1.0, 0.5, None])), max_size=40), st.integers(1, 6))
def test_groups_are_whole_even_alike_and_in_order(sent, most):
    messages = [message(*one) for one in sent]
    groups = grouped(messages, lambda one: most)
    assert sorted(map(id, messages)) == sorted(id(one) for group in groups for one in group)
    lines = defaultdict(list)
    for group in groups:
        assert 1 <= len(group) <= most
        assert len({one.metadata.dst_node_id for one in group}) == len(group)
        assert len({one.content["config"].get("rate") for one in group}) == 1
        for one in group:
            lines[one.metadata.dst_node_id].append(one)
    for node_id, line in lines.items():
        assert line == [one for one in messages if one.metadata.dst_node_id == node_id]
