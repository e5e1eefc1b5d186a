"""Replies in the order of their messages: late, doubled, foreign ones, and those that the SuperLink sends instead."""

import weakref

import pytest
from flwr.app import Error, Message, RecordDict

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, Windowed
from heterofl_flwr.compat import SUPERLINK_NODE_ID, ErrorCode
from heterofl_flwr.errors import ReplyError
from heterofl_flwr.federation.limits import read_number, read_numbers, short
from heterofl_flwr.strategies.read_replies import in_order, read_fault
from tests.federation.tiny import build, equal, make_app

pytestmark = pytest.mark.usefixtures("identity")


def messages(*node_ids):
    sent = [Message(RecordDict(), node_id, "train") for node_id in node_ids]
    for number, message in enumerate(sent):
        message.metadata.__dict__["_message_id"] = f"m{number}"
    return sent


def answer(message):
    return Message(RecordDict(), reply_to=message)


def of_superlink(message):
    reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "node gone"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
    return reply


@pytest.mark.parametrize("arriving", [(2, 0, 1), (2, 0), ()])
def test_replies_come_out_in_the_order_of_the_messages_and_a_missing_one_is_none(arriving):
    sent = messages(30, 10, 20)
    replies = {place: answer(sent[place]) for place in arriving}
    expected = [(own.metadata.dst_node_id, replies.get(place)) for place, own in enumerate(sent)]
    assert list(in_order(sent, iter(replies.values()))) == expected


def test_unknown_and_second_repliers_and_replies_to_another_message_are_dropped_with_a_warning(caplog):
    sent, (stranger,), (earlier,) = messages(30, 10), messages(99), messages(10)
    earlier.metadata.__dict__["_message_id"] = "before"
    first = answer(sent[0])
    replies = [answer(stranger), first, answer(sent[0]), answer(earlier), answer(sent[1])]
    assert list(in_order(sent, replies)) == [(30, first), (10, replies[4])]
    dropped = [record.getMessage() for record in caplog.records]
    assert [("99" in text, "30" in text) for text in dropped[:2]] == [(True, False), (False, True)]
    assert "was not asked this" in dropped[2]


def test_numbers_are_read_within_their_limits():
    assert read_number(3, 3, "x") == 3
    assert read_numbers([("a", 1), ("b", 2.5), ("c", True), ("d", "text"), ("e", [1.0])], "x") == {"a": 1.0, "b": 2.5}
    for value in (4, -1, True, 1.0, "3", None):
        with pytest.raises(ReplyError, match="as num-examples"):
            read_number(value, 3, "x")


def test_a_fault_is_kept_short_and_plain():
    assert short("a\x1b[31mb\nc") == "a�[31mb\nc"
    assert len(short("x" * 10**6)) < 1010
    assert short("start" + "x" * 10**6 + "end").endswith("end")


def test_an_error_of_the_superlink_is_that_of_the_message_it_answers(caplog):
    sent = messages(30, 10, 20)
    replies = [answer(sent[0]), of_superlink(sent[2]), of_superlink(sent[1])]
    assert {reply.metadata.src_node_id for reply in replies[1:]} == {SUPERLINK_NODE_ID}
    assert list(in_order(sent, replies)) == [(30, replies[0]), (10, replies[2]), (20, replies[1])]
    assert read_fault(replies[1]).reason == "error 5: node gone"
    assert not caplog.records


def test_an_error_of_the_superlink_for_a_message_that_is_sent_later():
    sent = messages(30, 10)
    for message in sent:
        message.metadata.__dict__["_message_id"] = ""

    def windowed():
        for number, message in enumerate(sent):
            message.metadata.__dict__["_message_id"] = f"late{number}"
            yield of_superlink(message)

    found = [(node_id, read_fault(reply).reason) for node_id, reply in in_order(sent, windowed())]
    assert found == [(30, "error 5: node gone"), (10, "error 5: node gone")]


def test_an_error_without_a_reason_has_a_text():
    (message,) = messages(3)
    assert read_fault(Message(Error(ErrorCode.UNKNOWN), reply_to=message)).reason == "error 0: no reason given"
    assert read_fault(answer(message)) is None


def test_replies_in_order_are_not_kept():
    sent = messages(*range(10, 20))
    alive = weakref.WeakSet()

    def replies():
        for message in sent:
            reply = answer(message)
            alive.add(reply)
            yield reply
            del reply

    for count, (_, reply) in enumerate(in_order(sent, replies())):
        del reply
        assert len(alive) <= 1, count


class Failing(LocalGrid):
    """A grid whose SuperLink says of the second node that it is gone."""

    def _gone(self, replies, messages):
        gone = list(self.get_node_ids())[1]
        for reply in replies:
            message = next(m for m in messages if m.metadata.message_id == reply.metadata.reply_to_message_id)
            late = reply.metadata.src_node_id == gone and message.metadata.message_type == "train"
            yield of_superlink(message) if late else reply

    def push_messages(self, messages):
        self._messages = [*getattr(self, "_messages", []), *messages]
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        return list(self._gone(super().pull_messages(message_ids), self._messages))

    def send_and_receive(self, messages, *, timeout=None):
        return list(self._gone(super().send_and_receive(messages, timeout=timeout), self._messages))


def test_a_node_that_is_gone_is_named_whatever_the_window():
    states = []
    for wrap in (lambda grid: grid, lambda grid: Windowed(grid, 1)):
        with Failing(make_app(), 4) as grid:
            strategy = HeteroFL(build, "a1-c1", evaluation=Evaluation(every=0))
            states.append(strategy.start(wrap(grid), num_rounds=2).arrays.to_torch_state_dict())
            assert strategy.log.failures == {1: "error 5: node gone"}
    assert equal(*states)
