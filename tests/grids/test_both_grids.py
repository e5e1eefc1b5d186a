"""``LocalGrid`` and ``RayGrid`` give the same answers."""

import gc
import random
import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from heterofl_flwr.grids import Windowed
from heterofl_flwr.transport.compat import SUPERLINK_NODE_ID, ErrorCode

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. .function Popen")  # Ray's processes


@pytest.fixture(params=["grid", pytest.param("actors", marks=[pytest.mark.simulation, pytest.mark.slow])])
def any_grid(request):
    """Return a grid of four nodes."""
    return request.getfixturevalue(request.param)


def test_replies_come_in_the_order_of_the_messages(any_grid, ask):
    durations = dict(zip(any_grid.get_node_ids(), (0.3, 0.0, 0.1, 0.0), strict=True))
    replies = any_grid.send_and_receive([ask(node_id, "sleep", seconds=s) for node_id, s in durations.items()])
    assert [reply.metadata.src_node_id for reply in replies] == list(durations)


def test_a_reply_names_its_message_and_its_node(any_grid, ask):
    node_id = list(any_grid.get_node_ids())[2]
    message = ask(node_id, "configs")
    (reply,) = any_grid.send_and_receive([message])
    assert reply.metadata.reply_to_message_id == message.metadata.message_id != ""
    assert reply.metadata.message_id not in ("", message.metadata.message_id)
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (node_id, SUPERLINK_NODE_ID)
    assert (reply.metadata.run_id, reply.content["node"]["partition-id"]) == (any_grid.run.run_id, 2)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("fail", "<class 'ZeroDivisionError'>:<'as partition 1 was told'>"),
        ("leave", "SystemExit"),
        ("silent", "returned a NoneType; expected a Message"),
        ("astray", "replies to another"),
    ],
)
def test_an_exception_is_an_error_reply_as_flower_words_it(any_grid, ask, action, reason):
    message = ask(list(any_grid.get_node_ids())[1], action)
    (reply,) = any_grid.send_and_receive([message])
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reason in reply.error.reason
    assert reply.metadata.src_node_id == message.metadata.dst_node_id
    assert reply.metadata.reply_to_message_id == message.metadata.message_id


def test_a_nodes_messages_are_answered_one_after_the_other(any_grid, ask):
    node_id = list(any_grid.get_node_ids())[1]
    replies = any_grid.send_and_receive([ask(node_id, "count", fail=i == 1) for i in range(4)])
    assert [None if reply.has_error() else reply.content["config"]["seen"] for reply in replies] == [1, None, 2, 3]


def test_large_and_small_arrays_arrive_whole(any_grid):
    node_id = list(any_grid.get_node_ids())[3]

    def hoard(value):
        arrays = ArrayRecord({"w": Array(np.full((300, 400), value)), "b": Array(np.full(3, value))})
        (reply,) = any_grid.send_and_receive([Message(RecordDict({"arrays": arrays}), node_id, "query.hoard")])
        assert len(arrays["w"].data) > 300 * 400 * 8  # the server's record is as it was
        return reply.content["before"]

    assert len(hoard(1.0)) == 0
    hoarded = hoard(2.0)
    assert list(hoarded) == ["w", "b"]
    np.testing.assert_array_equal(hoarded["w"].numpy(), np.full((300, 400), 1.0))
    np.testing.assert_array_equal(hoarded["b"].numpy(), np.full(3, 1.0))


def test_flowers_fedavg_learns_the_same_through_a_window(any_grid):
    def final(own):
        random.seed(2)
        result = FedAvg().start(own, ArrayRecord({"w": Array(np.ones(3))}), num_rounds=2)
        return result.arrays["w"].numpy().tolist(), result.evaluate_metrics_clientapp

    found, evaluated = final(any_grid)
    # Nodes add 1, 2, 3 and 4, and weigh 1, 2, 3 and 4: a round adds (1 + 4 + 9 + 16) / 10.
    assert (found, evaluated[2]["mean"]) == ([7.0] * 3, 7.0)
    assert (found, evaluated) == final(Windowed(any_grid, 1)) == final(Windowed(any_grid, 3))


def test_clients_that_spoil_what_they_got_spoil_nobody_elses(any_grid):
    shared = RecordDict(
        {"arrays": ArrayRecord({"w": Array(np.full(100_000, 3.0))}), "config": ConfigRecord({"a": [1]})}
    )
    kinds = ("query.spoil", "evaluate") * 2
    messages = [Message(shared, node_id, kind) for node_id, kind in zip(any_grid.get_node_ids(), kinds, strict=True)]
    replies = list(any_grid.send_and_receive(messages))
    assert [reply.content["config"]["size"] for reply in replies[::2]] == [1, 1]
    assert [reply.content["metrics"]["mean"] for reply in replies[1::2]] == [3.0, 3.0]
    assert dict(shared["config"]) == {"a": [1]}
    any_grid.set_run(any_grid.run)  # every node begins it anew, for the next test


def test_a_reply_that_was_taken_is_freed_at_once(grid):
    gc.disable()
    try:
        arrays = ArrayRecord({"w": Array(np.zeros(100_000))})
        messages = [Message(RecordDict({"arrays": arrays}), node_id, "train") for node_id in grid.get_node_ids()]
        sent, slice_, traces = [weakref.ref(one) for one in messages], weakref.ref(arrays), []
        replies = Windowed(grid, 2).send_and_receive(messages)
        del messages, arrays
        for reply in replies:
            traces.append(weakref.ref(reply.content["arrays"]))
            del reply
            assert traces[-1]() is None
        assert len(traces) == 4
        del replies
        assert [trace() for trace in sent] == [None] * 4
        assert slice_() is None
    finally:
        gc.enable()
