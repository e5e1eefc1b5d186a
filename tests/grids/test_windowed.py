"""``Windowed``: a bounded number of messages out, replies one by one and in order, on any grid."""

import random
import time
from types import GeneratorType

import pytest
from flwr.app import Error, Message, Metadata, RecordDict

from heterofl_flwr import Windowed
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.transport import exchange
from heterofl_flwr.transport.compat import make_message
from heterofl_flwr.transport.relay import Relay
from tests.hostile.superlink import Clock


class Recorder:
    """A grid like HttpGrid, that answers from nowhere: each pull brings at most one reply, drawn at random."""

    def __init__(self, nodes=10, *, silent=(), unsent=(), dead=()):
        self.nodes, self.silent, self.unsent, self.dead = range(100, 100 + nodes), silent, unsent, dead
        self.out: dict[str, Message] = {}
        self.seen: set[str] = set()
        self.most_out = self.pulls = 0
        self.draw = random.Random(0)

    def get_node_ids(self):
        return list(self.nodes)

    def push_messages(self, messages):
        assert len(list(messages)) == len(list(messages)) > 0, "HttpGrid reads its messages twice"
        ids = ["" if (own := message.metadata.dst_node_id) in self.unsent else f"id-{own}" for message in messages]
        for id_, message in zip(ids, messages, strict=True):
            message.metadata.__dict__["_message_id"] = id_
            if id_:
                self.out[id_] = message
                self.seen.add(id_)
        self.most_out = max(self.most_out, len(self.out))
        return ids

    def pull_messages(self, message_ids):
        self.pulls += 1
        ready = [id_ for id_ in message_ids if id_ in self.out and int(id_[3:]) not in self.silent]
        if not ready or self.draw.random() < 0.3:
            return []
        message = self.out.pop(self.draw.choice(ready))
        if message.metadata.dst_node_id in self.dead:
            return [error_of_the_superlink(message)]
        return [Message(message.content, reply_to=message)]


def error_of_the_superlink(message):
    own = {"run_id": 3, "message_id": "", "src_node_id": 1, "dst_node_id": 1, "group_id": "", "ttl": 0}
    about = {"reply_to_message_id": message.metadata.message_id, "created_at": time.time(), "message_type": "train"}
    return make_message(Metadata(**own, **about), error=Error(5, "Node Unavailable"))


pytestmark = pytest.mark.usefixtures("identity")


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(exchange, "time", own := Clock())
    return own


def messages_to(grid):
    return [Message(RecordDict(), node_id, "train") for node_id in grid.get_node_ids()]


def sources(replies):
    return [int(reply.metadata.reply_to_message_id.removeprefix("id-")) for reply in replies]


@pytest.mark.parametrize("window", [1, 3, 10, 50])
def test_replies_come_in_order_and_few_messages_are_out(window):
    grid = Recorder()
    replies = Windowed(grid, window).send_and_receive(messages_to(grid))
    assert isinstance(replies, GeneratorType)
    assert sources(replies) == grid.get_node_ids()
    assert grid.most_out == min(window, 10)


@pytest.mark.parametrize(("window", "sent"), [(4, [4, 4, 6, 6, 8, 8]), (3, [3, 3, 5, 5, 7]), (1, [1, 2, 3, 4])])
def test_messages_leave_when_half_the_window_is_free(window, sent):
    grid = Recorder()
    replies = iter(Windowed(grid, window).send_and_receive(messages_to(grid)))
    numbers = []
    for _ in sent:
        numbers.append(len(grid.seen))
        next(replies)
    assert numbers == sent


def test_error_replies_take_their_messages_place():
    grid = Recorder(dead=(102, 105))
    replies = list(Windowed(grid, 4).send_and_receive(messages_to(grid)))
    assert sources(replies) == grid.get_node_ids()
    assert [i for i, reply in enumerate(replies) if reply.has_error()] == [2, 5]
    assert {reply.metadata.src_node_id for reply in replies if reply.has_error()} == {1}


@pytest.mark.parametrize(
    ("window", "silent", "unsent", "expected"),
    [
        (6, (101, 103), (), [100, 102, 104, 105]),
        (2, (101,), (), [100, 102]),  # what was not sent by then is never sent
        (1, (), (100, 101, 104), [102, 103, 105]),
    ],
)
def test_messages_without_an_answer_in_time_are_left_out(clock, window, silent, unsent, expected):
    grid = Recorder(6, silent=silent, unsent=unsent)
    replies = Windowed(grid, window).send_and_receive(messages_to(grid), timeout=30.0)
    assert sources(replies) == expected
    assert (clock.now == 30.0) == bool(silent)
    assert set(grid.out) == {f"id-{node_id}" for node_id in silent}


def test_a_window_below_one_raises():
    with pytest.raises(ConfigError, match="window is 0; expected an integer of 1 or more"):
        Windowed(Recorder(), 0)


def test_a_local_grid_runs_only_the_client_whose_reply_is_taken(grid, ask):
    first, second, *_ = grid.get_node_ids()
    replies = iter(Windowed(grid, 4).send_and_receive([ask(node_id, "count") for node_id in (first, second, first)]))
    next(replies)
    (count,) = grid.send_and_receive([ask(second, "count")])
    assert count.content["config"]["seen"] == 1  # the second message has not run


def test_replies_that_nobody_takes_are_cancelled(grid, ask):
    messages = [ask(node_id, "count") for node_id in grid.get_node_ids()]
    replies = Windowed(grid, 4).send_and_receive(messages)
    next(iter(replies))
    replies.close()
    assert list(grid.pull_messages([message.metadata.message_id for message in messages])) == []


def test_messages_are_cancelled_through_grids_around_grids(grid, ask):
    outer = Windowed(Relay(grid), 2)
    ids = list(outer.push_messages([ask(node_id, "count") for node_id in grid.get_node_ids()]))
    outer.cancel(ids)
    assert list(grid.pull_messages(ids)) == []
    Windowed(Recorder(), 2).cancel(ids)  # a grid of Flower has nothing to cancel
