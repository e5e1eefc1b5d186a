"""Replies in the order of their messages: late, doubled, foreign ones, and those that the SuperLink sends instead."""

import weakref

import pytest
from flwr.app import Error, Message, RecordDict

from heterofl_flwr.common.errors import Fault, name_faults, short
from heterofl_flwr.strategies.round_messages import outcomes
from heterofl_flwr.transport.compat import SUPERLINK_NODE_ID, ErrorCode

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


def test_strangers_and_second_replies_are_dropped(caplog):
    sent, (stranger,), (earlier,) = messages(30, 10), messages(99), messages(10)
    earlier.metadata.__dict__["_message_id"] = "before"
    first, last = answer(sent[0]), answer(sent[1])
    replies = [answer(stranger), first, answer(sent[0]), answer(earlier), last]
    assert list(outcomes(sent, replies)) == [(30, first), (10, last)]
    assert [node_id in text for node_id, text in zip(("99", "30", "10"), caplog.messages, strict=True)] == [True] * 3


def test_a_fault_is_kept_short_and_plain():
    assert short("a\x1b[31mb\nc\n") == "a�[31mb\n    c"
    assert len(short("x" * 10**6)) < 1010
    assert short("start" + "x" * 10**6 + "end").endswith("end")


def test_faults_that_differ_only_in_numbers_are_listed_once():
    faults = {3: "batch 7 of 9 is empty", 4: "batch 12 of 9 is empty", 5: "out of memory"}
    assert name_faults("node", faults) == "node 3 and 1 more: batch 7 of 9 is empty; node 5: out of memory"


def test_a_superlinks_error_is_that_of_its_message(caplog):
    sent = messages(30, 10, 20)
    replies = [answer(sent[0]), of_superlink(sent[2]), of_superlink(sent[1])]
    assert {reply.metadata.src_node_id for reply in replies[1:]} == {SUPERLINK_NODE_ID}
    gone = Fault("error 5: node gone", "gone")
    assert list(outcomes(sent, replies)) == [(30, replies[0]), (10, gone), (20, gone)]
    assert not caplog.records


def test_a_superlinks_error_may_be_of_a_message_sent_later():
    sent = messages(30, 10)
    for message in sent:
        message.metadata.__dict__["_message_id"] = ""

    def windowed():
        for number, message in enumerate(sent):
            message.metadata.__dict__["_message_id"] = f"late{number}"
            yield of_superlink(message)

    gone = Fault("error 5: node gone", "gone")
    assert list(outcomes(sent, windowed())) == [(30, gone), (10, gone)]


def test_replies_in_order_are_not_kept():
    sent = messages(*range(10, 20))
    alive = weakref.WeakSet()

    def replies():
        for message in sent:
            reply = answer(message)
            alive.add(reply)
            yield reply
            del reply

    for count, (_, reply) in enumerate(outcomes(sent, replies())):
        del reply
        assert len(alive) <= 1, count
