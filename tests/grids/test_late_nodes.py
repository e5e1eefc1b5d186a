"""``LateNodes``: a SuperNode that is one message behind holds up no round; one that is merely slow is waited for."""

import pytest

from heterofl_flwr.common.errors import RoundError
from heterofl_flwr.strategies import node_registration, time_budget
from heterofl_flwr.transport import exchange, late_nodes
from heterofl_flwr.transport.late_nodes import LateNodes
from tests.federation.tiny import Watched, play
from tests.hostile.superlink import Clock

TIMEOUT = 3600.0


class Behind(Watched):
    """A grid in which a reply takes a second; those of some nodes are there only when their next message arrives.

    ``behind`` has, by partition, the number of the message from which on a node is behind. ``slow`` has the seconds
    that a node takes to answer its messages to train, by the number of the message. A SuperLink answers a pull of a
    message whose reply was taken with an error; here none may be pulled.
    """

    def __init__(self, app, num_nodes, *, clock, behind=None, slow=None, **options):
        super().__init__(app, num_nodes, **options)
        self._clock, self._behind, self._slow = clock, behind or {}, slow or {}
        self._by_node, self._due, self._taken = {}, {}, set()

    def push_messages(self, messages):
        messages = list(messages)
        for message, id_ in zip(messages, ids := list(super().push_messages(messages)), strict=True):
            node, now = self.partition_of(message), self._clock.now
            numbers = self._by_node.setdefault(node, [])
            if numbers and self._due[numbers[-1]] == float("inf"):
                self._due[numbers[-1]] = now + 1.0
            numbers.append(id_)
            is_behind = len(numbers) >= self._behind.get(node, float("inf"))
            seconds = self._slow.get(node, {}).get(len(numbers), 1.0)
            self._due[id_] = float("inf") if is_behind else now + seconds
        return ids

    def pull_messages(self, message_ids):
        ids = set(message_ids)
        assert not ids & self._taken
        replies = list(super().pull_messages([id_ for id_ in ids if self._due[id_] <= self._clock.now]))
        self._taken |= {reply.metadata.reply_to_message_id for reply in replies}
        return replies


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    for module in (exchange, time_budget, node_registration, late_nodes):
        monkeypatch.setattr(module, "time", found)
    return found


def run(clock, num_rounds=4, nodes=4, **options):
    def grid(app, number, node_config=None):
        return Behind(app, number, clock=clock, **options)

    return play(None, "a1", nodes, num_rounds, grid=grid, wrap=LateNodes, start={"timeout": TIMEOUT})


def test_a_node_that_falls_one_message_behind_costs_one_deadline_and_is_named(clock):
    found = run(clock, behind={3: 3})  # its query and its first training are answered
    assert [record.answered for record in found.records] == [4, 3, 3, 3]
    assert clock.now < TIMEOUT + 100
    for record in found.records[2:]:
        assert record.failures == {3: late_nodes.LATE}
        assert "restart its SuperNode: partition 3" in record.line()


def test_a_node_that_was_slow_once_is_waited_for(clock):
    found = run(clock, slow={3: {3: TIMEOUT + 5.0}})
    assert [record.answered for record in found.records] == [4, 3, 4, 4]


def test_nodes_that_begin_one_message_behind_are_known_by_their_late_answers(clock):
    found = run(clock, num_rounds=3, behind={3: 1})
    assert [(record.answered, record.expected) for record in found.records] == [(3, 4)] * 3
    assert [record.failures for record in found.records] == [{}, {3: late_nodes.LATE}, {3: late_nodes.LATE}]
    assert clock.now < node_registration.QUERY_SECONDS + 100
    with pytest.raises(RoundError, match=r"0 of 2 clients gave a usable reply.*no reply in time"):
        run(clock, num_rounds=2, nodes=2, behind={0: 1, 1: 1})


def test_a_late_answer_to_a_query_counts_in_the_next_round(clock):
    found = run(clock, slow={3: {1: node_registration.QUERY_SECONDS + 1.0}})
    assert [record.answered for record in found.records] == [3, 4, 4, 4]
    found = run(clock, num_rounds=8, slow={3: dict.fromkeys(range(1, 9), 130.0)})  # longer than rounds
    assert [record.answered for record in found.records][-1] == 4
