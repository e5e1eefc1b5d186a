"""``Guarded``: what a node can write into a reply is that node's error, whatever it is, and holds nobody up."""

import json
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid
from google.protobuf.message import DecodeError

from heterofl_flwr.grids import Windowed
from heterofl_flwr.grids.guarded import Guarded, guard
from heterofl_flwr.grids.identity import Identity


@pytest.fixture(autouse=True)
def identity():
    own = Identity(7)
    yield
    own.release()


ENTRIES = 1000
LARGEST = 4 * ENTRIES + 4096


class SuperLink:
    """What Flower's grid talks to: nodes whose replies a test may forge, byte by byte."""

    def __init__(self, forge):
        self.forge = forge  # from a node and its honest reply to objects, by id, and the id of the message among them
        self.objects: dict[str, bytes | None] = {}
        self.replies: dict[str, tuple] = {}
        self.confirmed: list[str] = []
        self.pulls = 0

    def PushMessages(self, request):
        ids = [message.metadata.message_id for message in request.messages_list]
        for message in request.messages_list:
            self.answer(message.metadata)
        return PushAppMessagesResponse(message_ids=ids, objects_to_push=[], session_id="one")

    def PushObject(self, request):
        raise AssertionError("no object was asked for")

    def answer(self, asked):
        reply = honest(asked.message_id, asked.dst_node_id)
        proto = message_to_proto(remove_content_from_message(reply))  # which a SuperLink checks
        objects, head = self.forge(asked.dst_node_id, reply)
        proto.metadata.message_id = head
        self.objects |= objects
        tree = ObjectTree(object_id=head, children=[ObjectTree(object_id=own) for own in objects if own != head])
        self.replies[asked.message_id] = proto, tree

    def PullMessages(self, request):
        found = [self.replies.pop(id_) for id_ in request.message_ids if id_ in self.replies]
        return PullAppMessagesResponse(
            messages_list=[proto for proto, _ in found], message_object_trees=[tree for _, tree in found]
        )

    def PullObject(self, request):
        self.pulls += 1
        content = self.objects[request.object_id]
        return PullObjectResponse(
            object_found=True, object_available=content is not None, object_content=content or b""
        )

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()


def honest(about, node_id):
    arrays = ArrayRecord({"weight": Array(np.full(ENTRIES, node_id, np.float32))})
    asked = Message(RecordDict(), node_id, "train")
    asked.metadata.__dict__.update(_message_id=about, _run_id=7, _src_node_id=1)
    metrics = MetricRecord({"loss": float(node_id)})
    reply = Message(
        RecordDict({"arrays": arrays, "metrics": metrics, "config": ConfigRecord({"n": node_id})}), reply_to=asked
    )
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


def as_it_is(node_id, reply):
    return {id_: own.deflate() for id_, own in get_all_nested_objects(reply).items()}, reply.object_id


def rewritten(kind, body):
    """Return how a node forges a reply whose object of a kind has another body; those above it name the new one."""

    def forge(node_id, reply):
        objects, head = as_it_is(node_id, reply)
        (old,) = [id_ for id_, content in objects.items() if content.startswith(f"{kind} ".encode())]
        own_head = objects[old].partition(b"\x00")[0].decode().rpartition(" ")[0]
        return replaced(objects, head, old, f"{own_head} {len(body)}".encode() + b"\x00" + body)

    return forge


def replaced(objects, head, old, content):
    """Put another object in the place of one, and so on up to the message."""
    while True:
        new = get_object_id(content)
        objects = {id_: own for id_, own in objects.items() if id_ != old} | {new: content}
        if old == head:
            return objects, new
        above = [id_ for id_, own in objects.items() if old.encode() in own and id_ != new]
        content, old_above = objects[above[0]].replace(old.encode(), new.encode()), above[0]
        old, new = old_above, new


def repeated_chunk(node_id, reply):
    body = {"dtype": "float32", "shape": [ENTRIES], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 1000}
    return rewritten("Array", json.dumps(body).encode())(node_id, reply)


def too_large(node_id, reply):
    reply.content["arrays"] = ArrayRecord({"weight": Array(np.zeros(10 * ENTRIES))})
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return as_it_is(node_id, reply)


def withheld(node_id, reply):
    objects, head = as_it_is(node_id, reply)
    return dict.fromkeys(objects, None), head


def of_another_node(node_id, reply):
    reply.metadata.__dict__["_src_node_id"] = node_id - 1
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return as_it_is(node_id, reply)


def to_another_message(node_id, reply):
    reply.metadata.__dict__["_reply_to_message_id"] = "0" * 64
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return as_it_is(node_id, reply)


def many_empty_objects(node_id, reply):
    objects, head = as_it_is(node_id, reply)
    return objects | {f"{number:064x}": b"ArrayChunk  0\x00" for number in range(10_000)}, head


FORGERIES = {
    "a config that is no JSON": rewritten("ConfigRecord", b"\xff garbage"),
    "a config that never closes": rewritten("ConfigRecord", b"[" * 2000),
    "records that are no mapping": rewritten("RecordDict", b"[[[["),
    "a chunk that is not there": rewritten("Array", b'{"arraychunk_ids": [5]}'),
    "a message that is no protobuf": rewritten("Message", b"\xff\xff\xff"),
    "one chunk many times": repeated_chunk,
    "ten times the parameters": too_large,
    "ten thousand empty objects": many_empty_objects,
    "the name of another node": of_another_node,
    "the reply to another message": to_another_message,
}


def connected(forge):
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="token")
    grid.set_run(Run.create_empty(7))
    grid._client = SuperLink(forge)
    return grid


def hostile_node(number, forge):
    """Return how all nodes reply: node ``number`` by forging, the others honestly."""
    return lambda node_id, reply: (forge if node_id == number else as_it_is)(node_id, reply)


def ask(nodes):
    return [Message(RecordDict({"config": ConfigRecord({"n": node_id})}), node_id, "train") for node_id in nodes]


def replies_of(grid, nodes=(11, 12, 13), timeout=30):
    messages = ask(nodes)
    found = list(grid.send_and_receive(messages, timeout=timeout))
    asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    return {asked[reply.metadata.reply_to_message_id]: reply for reply in found}


def test_honest_replies_come_as_through_flowers_own_grid():
    plain, ours = connected(as_it_is), connected(as_it_is)
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
    assert len(grid._client.confirmed) == 3  # the SuperLink need not keep it


@pytest.mark.parametrize("kind", ["a config that is no JSON", "records that are no mapping"])
def test_flowers_own_grid_would_end_the_run(kind):
    with pytest.raises((ValueError, TypeError, AttributeError, DecodeError)):
        replies_of(connected(hostile_node(12, FORGERIES[kind])))


def test_no_more_of_a_reply_is_fetched_than_it_may_have():
    grid = connected(hostile_node(12, many_empty_objects))
    replies_of(guard(grid, lambda message: LARGEST), nodes=[12])
    assert grid._client.pulls == 0  # their number alone is too much


def test_withheld_objects_hold_up_neither_the_others_nor_the_deadline():
    grid = connected(hostile_node(12, withheld))
    began = time.monotonic()
    found = replies_of(guard(grid, lambda message: LARGEST), timeout=0.2)
    assert list(found) == [11, 13]
    assert time.monotonic() - began < 30  # Flower's own grid: 500 tries of up to 10 s for each object


def test_objects_that_come_late_are_taken():
    late = {}

    def slow(node_id, reply):
        late.update(as_it_is(node_id, reply)[0])
        return withheld(node_id, reply)

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
    grid = connected(hostile_node(12, repeated_chunk))
    found = replies_of(guard(Windowed(grid, 2), lambda message: LARGEST))
    assert {node_id: reply.has_error() for node_id, reply in found.items()} == {11: False, 12: True, 13: False}


def test_other_grids_stay_as_they_are():
    grid = object()
    window = Windowed(grid, 2)
    assert guard(grid, lambda message: 0) is grid
    assert guard(window, lambda message: 0) is window
    once = guard(connected(as_it_is), lambda message: LARGEST)
    assert isinstance(once, Guarded)
    assert guard(once, lambda message: LARGEST) is once
