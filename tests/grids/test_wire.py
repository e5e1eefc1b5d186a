"""What travels to a worker process: the same messages, and what several of them share only once."""

import socket
from multiprocessing.connection import Connection

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from heterofl_flwr.grids.apps import Envelope
from heterofl_flwr.grids.payloads import LARGE, Wire, find_slice

pytestmark = pytest.mark.usefixtures("identity")


class Counting(Connection):
    """A connection that notes the arrays that travel by themselves."""

    sent: list[bytes]

    def send_bytes(self, data, *args):
        self.sent.append(data)
        super().send_bytes(data, *args)


@pytest.fixture
def ends():
    """Return both ends of a wire, and what travelled by itself."""
    ours, theirs = socket.socketpair()
    for one in (ours, theirs):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)  # room for all, as one thread plays both ends
    with Counting(ours.detach()) as near, Connection(theirs.detach()) as far:
        near.sent = []
        yield Wire(near), Wire(far), near.sent


def array(value, number=LARGE // 4):
    return Array(np.full(number, value, dtype=np.float32))


def message(arrays, **config):
    return Message(RecordDict({"arrays": arrays, "config": ConfigRecord(config)}), 5, "train")


def values(envelope):
    return {name: one.numpy()[0] for name, one in envelope.message.content["arrays"].items()}


def pushed(messages):
    """Return the slice of each message, as a pool finds them."""
    known = {}
    return [find_slice(one, known) for one in messages]


def test_what_messages_share_travels_once(ends):
    near, far, sent = ends
    levels = [ArrayRecord({"w": array(w), "v": array(2.0), "small": array(3.0, 4)}) for w in (1.0, 5.0)]
    messages = [message(levels[i % 2], number=i) for i in range(6)]
    for one, slice_ in zip(messages, pushed(messages), strict=True):
        near.send([Envelope(one)], [slice_])
        (envelope,) = far.receive()
        content = envelope.message.content
        assert values(envelope) == {"w": 5.0 if content["config"]["number"] % 2 else 1.0, "v": 2.0, "small": 3.0}
        assert content["config"] == one.content["config"]
        content["arrays"]["w"] = array(9.0)  # what user code does here reaches no other message
        content["arrays"].pop("v")
    assert len(sent) == 4


def test_messages_of_a_group_travel_together(ends):
    near, far, sent = ends
    arrays = ArrayRecord({"w": array(1.0)})
    messages = [message(arrays, number=i) for i in range(3)]
    context = Context(1, 5, {}, RecordDict({"own": ArrayRecord({"w": array(7.0)})}), {})
    near.send([Envelope(one, context) for one in messages], pushed(messages))
    envelopes = far.receive()
    assert [own.message.content["config"]["number"] for own in envelopes] == [0, 1, 2]
    assert [values(own) for own in envelopes] == [{"w": 1.0}] * 3
    assert [own.context.state["own"]["w"].numpy()[0] for own in envelopes] == [7.0] * 3
    assert len(sent) == 1 + 3  # nodes' states are their own


def test_a_slice_is_kept_while_messages_need_it(ends):
    near, far, sent = ends
    for value in (1.0, 2.0, 1.0):
        arrays = ArrayRecord({"w": array(value)})
        messages = [message(arrays), message(arrays)]
        for one, slice_ in zip(messages, pushed(messages), strict=True):
            near.send([Envelope(one)], [slice_])
            assert [values(own) for own in far.receive()] == [{"w": value}]
        del slice_
    assert (len(sent), len(far._received)) == (3, 1)
    alone = message(ArrayRecord({"w": array(5.0)}))  # no other message has its arrays
    near.send([Envelope(alone)], pushed([alone]))
    assert [values(own) for own in far.receive()] == [{"w": 5.0}]
    assert len(far._received) == 0


def test_an_array_that_changes_after_the_push_travels_as_it_is(ends):
    near, far, _ = ends
    arrays = ArrayRecord({"w": array(1.0)})
    messages = [message(arrays) for _ in range(2)]
    slices = pushed(messages)
    for value in (1.0, 2.0, 3.0):
        arrays["w"].data = array(value).data
        near.send([Envelope(messages[0])], slices[:1])
        assert [values(own) for own in far.receive()] == [{"w": value}]


def test_what_does_not_pickle_leaves_the_wire_as_it_was(ends):
    near, far, sent = ends
    arrays = ArrayRecord({"w": array(1.0)})
    messages = [message(arrays) for _ in range(2)]
    slices = pushed(messages)
    messages[0].metadata.__dict__["strange"] = lambda: None
    with pytest.raises(Exception, match="pickle"):
        near.send([Envelope(messages[0])], slices[:1])
    assert sent == []
    near.send([Envelope(messages[1])], slices[1:])
    assert [values(own) for own in far.receive()] == [{"w": 1.0}]
