"""``Guarded``: what a node can write into a reply is that node's error, whatever it is, and holds nobody up."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, example, given, settings, strategies as st

from heterofl_flwr import Windowed
from heterofl_flwr.transport import exchange, size_guard as guarding
from heterofl_flwr.transport.size_guard import guard
from tests.hostile import changes as to, superlink, uploads
from tests.hostile.uploads import FORGERIES, as_it_is

pytestmark = pytest.mark.usefixtures("identity")


ENTRIES = 1000
LARGEST = 4 * ENTRIES + 2**20


def honest(about, node_id):
    frozen = Array(np.zeros(3, np.float32))  # which all nodes send back as they got it: one object of the SuperLink
    arrays = ArrayRecord({"weight": Array(np.full(ENTRIES, node_id, np.float32)), "frozen": frozen})
    asked = Message(RecordDict(), node_id, "train")
    asked.metadata.__dict__.update(_message_id=about, _run_id=7, _src_node_id=1)
    metrics = MetricRecord({"loss": float(node_id)})
    reply = Message(
        RecordDict({"arrays": arrays, "metrics": metrics, "config": ConfigRecord({"n": node_id})}), reply_to=asked
    )
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


def connected(forge):
    """Return Flower's grid over nodes that reply by forging, each in its way: ``forge(node_id, honest reply)``."""

    def answer(asked):
        good = honest(asked.message_id, asked.dst_node_id)
        return [uploads.outgoing(good, lambda reply: forge(asked.dst_node_id, reply))]

    return superlink.connected(answer)[0]


def hostile_node(number, forge):
    """Return how all nodes reply: node ``number`` by forging, the others honestly."""
    return lambda node_id, reply: (forge if node_id == number else as_it_is)(reply)


def ask(nodes):
    return [Message(RecordDict({"config": ConfigRecord({"n": node_id})}), node_id, "train") for node_id in nodes]


def replies_of(grid, nodes=(11, 12, 13), timeout=30):
    messages = ask(nodes)
    found = list(grid.send_and_receive(messages, timeout=timeout))
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    return {asked[reply.metadata.reply_to_message_id]: reply for reply in found}


def test_honest_replies_come_as_through_flowers_own_grid():
    plain, ours = connected(hostile_node(0, as_it_is)), connected(hostile_node(0, as_it_is))
    expected, found = replies_of(plain), replies_of(guard(ours, lambda message: LARGEST))
    assert list(found) == sorted(expected) == [11, 12, 13]
    for node_id, reply in found.items():
        assert reply.metadata.src_node_id == node_id
        assert reply.content["arrays"] == expected[node_id].content["arrays"]
        assert reply.content["metrics"] == expected[node_id].content["metrics"]
    assert ours._client.confirmed == [reply.metadata.message_id for reply in found.values()]


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_reply_is_an_error_of_its_node_and_of_no_other(kind):
    grid = connected(hostile_node(12, FORGERIES[kind]))
    found = replies_of(guard(grid, lambda message: LARGEST))
    assert list(found) == [11, 12, 13]
    assert found[12].has_error()
    assert "unusable reply" in found[12].error.reason
    assert not found[11].has_error()
    assert not found[13].has_error()
    # The SuperLink need not keep it; of one whose announcement is not read, nobody knows the id.
    assert len(grid._client.confirmed) == 3 - (kind == "a long text beside the reply")


def spoiled(kept, number, edits, reply):
    """Withhold some objects, or change the bytes of one and name it by what it has become."""
    whole = as_it_is(reply)
    names = sorted(whole.objects)
    if kept is not None:
        return replace(whole, objects={**whole.objects, **dict.fromkeys(names[kept::2])})
    old = names[number % len(names)]
    return uploads.replaced(whole, old, to.damage(edits, whole.objects[old].partition(b"\x00")[2]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the identity, which stays as it is
@given(kept=st.none() | st.integers(0, 9), number=st.integers(0, 99), edits=to.edits)
@example(kept=None, number=0, edits=[(0.0, 10**6, b"[" * 90_000)])
def test_any_bytes_are_an_error_of_their_node_alone(kept, number, edits):
    grid = connected(hostile_node(12, partial(spoiled, kept, number, edits)))
    with pytest.MonkeyPatch.context() as patch:
        for module in (guarding, exchange):
            patch.setattr(module, "time", grid._client.clock)
        found = replies_of(guard(grid, lambda message: LARGEST), timeout=1)
    assert {11, 13} <= {node_id for node_id, reply in found.items() if not reply.has_error()}


@pytest.mark.parametrize("announce", [uploads.announced_flat, uploads.announced_with_a_gap])
def test_what_a_node_announces_binds_no_other(announce):
    grid = connected(hostile_node(11, announce))  # the first, so that the SuperLink keeps what it says
    found = replies_of(guard(grid, lambda message: LARGEST))
    assert {node_id: reply.has_error() for node_id, reply in found.items()} == {11: False, 12: False, 13: False}
    np.testing.assert_array_equal(found[12].content["arrays"]["frozen"].numpy(), np.zeros(3))


def test_no_more_of_a_reply_is_fetched_than_it_may_have():
    grid = connected(hostile_node(12, uploads.many_empty_objects))
    replies_of(guard(grid, lambda message: LARGEST), nodes=[12])
    assert grid._client.pulls <= 2  # the message, and the record dict that names too many


@pytest.mark.parametrize("forge", [uploads.withheld, uploads.many_small_objects(5000)])
def test_stalling_nodes_hold_up_neither_others_nor_the_deadline(forge, monkeypatch):
    stalling, honest_nodes = range(10), range(10, 20)
    grid = connected(lambda node_id, reply: (forge if node_id in stalling else as_it_is)(reply))
    clock = grid._client.clock
    for module in (guarding, exchange):
        monkeypatch.setattr(module, "time", clock)
    found = replies_of(guard(grid, lambda message: LARGEST), nodes=range(20), timeout=30)
    assert set(honest_nodes) <= {node_id for node_id, reply in found.items() if not reply.has_error()}
    assert clock.now <= 30 + 5  # Flower's own grid: 500 tries of up to 10 s for each object


def test_objects_that_come_late_are_taken():
    late = {}

    def slow(reply):
        late.update(as_it_is(reply).objects)
        return uploads.withheld(reply)

    grid = connected(hostile_node(12, slow))
    guarded = guard(grid, lambda message: LARGEST)
    ids = list(guarded.push_messages(ask([11, 12])))
    assert [reply.metadata.src_node_id for reply in guarded.pull_messages(ids)] == [11]
    assert list(guarded.pull_messages(ids[1:])) == []
    grid._client.objects |= late
    (reply,) = guarded.pull_messages(ids[1:])
    assert reply.metadata.src_node_id == 12
    assert not reply.has_error()


def test_a_window_over_a_superlink_is_guarded_too():
    grid = connected(hostile_node(12, uploads.repeated_chunk))
    found = replies_of(guard(Windowed(grid, 2), lambda message: LARGEST))
    assert {node_id: reply.has_error() for node_id, reply in found.items()} == {11: False, 12: True, 13: False}


def test_other_grids_stay_as_they_are():
    grid = object()
    window = Windowed(grid, 2)
    assert guard(grid, lambda message: 0) is grid
    assert guard(window, lambda message: 0) is window
