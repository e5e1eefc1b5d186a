"""What a hostile node does with its good reply before it is sent."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from heterofl_flwr import messages
from heterofl_flwr.compat import make_message
from simulations.fuzz.forgeries import (
    BOMBS,
    GARBAGE,
    Forgery,
    Uploaded,
    as_it_is,
    hoarded,
    small_objects_and_a_gap,
    withheld,
)
from simulations.fuzz.mutations import MUTATIONS, Envelope

Outgoing = tuple[Message, Uploaded]
"""What is announced, and what is uploaded."""


@dataclass
class Turn:
    """A message to a hostile node."""

    asked: Message
    reply: Message  # what a good node would answer
    server_round: int  # of the message; 0 where it names none
    sent: list[Message] = field(default_factory=list)  # the good replies of this node to earlier messages it attacks
    # the messages that other nodes have not answered yet, which no node knows of another
    others: Sequence[Message] = ()


Act = Callable[[Turn], Sequence[Outgoing]]
Change = Callable[[Envelope, Turn], None]


@dataclass(frozen=True, slots=True)
class Attack:
    """What a node sends in place of its good reply."""

    act: Act
    kinds: Sequence[str] = ("train",)  # the types of messages that it answers so
    silent_from: int = 1  # the round from which on none of these answers may count; 0: they are lies, which count
    answers: bool = True  # whether the server has something to refuse, or no reply in time

    def outgoing(self, turn: Turn) -> Sequence[Outgoing]:
        """Return what the node sends."""
        return self.act(turn) if turn.asked.metadata.message_type in self.kinds else [outgoing(turn.reply)]


def outgoing(message: Message, forge: Forgery = as_it_is) -> Outgoing:
    """Return a message with its upload; what is announced stays true."""
    message.metadata.__dict__["_message_id"] = message.object_id
    metadata = copy.copy(message.metadata)
    upload = forge(message)
    metadata.__dict__.update(_message_id=upload.head, _group_id=upload.group_id)
    if message.has_error():
        return make_message(metadata, error=message.error), upload
    return make_message(metadata, RecordDict()), upload


def forged(forge: Forgery, answers: bool = True) -> Attack:
    """Return the attack that forges each reply but what the node can hold."""
    kinds = ("train", "query.moments", "evaluate")
    return Attack(lambda turn: [outgoing(turn.reply, forge)], kinds, answers=answers)


def changed(change: Change, turn: Turn) -> Sequence[Outgoing]:
    """Change what a reply holds."""
    envelope = Envelope.of(turn.reply)
    change(envelope, turn)
    return [outgoing(envelope.seal(turn.asked))]


def mutated(kind: str) -> Attack:
    """Return the attack that makes one of the fuzzer's changes."""
    return Attack(partial(changed, lambda envelope, turn: MUTATIONS[kind](random.Random(turn.server_round), envelope)))


def lie(change: Change, kind: str = "train") -> Attack:
    """Return the attack whose replies fit, and count."""
    return Attack(partial(changed, change), (kind,), 0)


def again(turn: Turn) -> Sequence[Outgoing]:
    """Answer the first instruction, and send that reply again to each later one."""
    turn.sent.append(turn.reply)
    return [outgoing(turn.sent[0])]


def late(turn: Turn) -> Sequence[Outgoing]:
    """Send each reply when the next instruction comes."""
    turn.sent.append(turn.reply)
    return [outgoing(message) for message in turn.sent[:-1]]


def twice(turn: Turn) -> Sequence[Outgoing]:
    """Send a good reply, and then another one to the same message."""
    return [outgoing(turn.reply), *changed(further(-5.0), turn)]


def to_others(turn: Turn, *, own_name: bool) -> Sequence[Outgoing]:
    """Answer the messages of others, under the node's own name, or under theirs: of these a node is never told."""
    envelope = Envelope.of(turn.reply)
    further(-5.0)(envelope, turn)
    replies = [envelope.seal(other) for other in turn.others if other.metadata.message_type == "train"]
    for reply in replies if own_name else ():
        reply.metadata.__dict__["_src_node_id"] = turn.reply.metadata.src_node_id
    return [outgoing(reply) for reply in ([] if own_name else [turn.reply]) + replies]


def further(factor: float, examples: int | None = None) -> Change:
    """Return how a node says that it went so many times as far, maybe with more examples."""

    def change(envelope: Envelope, turn: Turn) -> None:
        sent = turn.asked.content[messages.ARRAYS]
        assert isinstance(sent, ArrayRecord)
        each(envelope, lambda name, value: sent[name].numpy() + factor * (value - sent[name].numpy()))
        envelope.metrics |= {} if examples is None else {messages.NUM_EXAMPLES: examples}

    return change


def shift_rows(envelope: Envelope, turn: Turn) -> None:
    """Send each class's row of the classifier as the next one's."""
    classes = list(envelope.arrays[messages.ARRAYS].values())[-1].shape[0]
    each(envelope, lambda name, value: np.roll(value, 1, 0) if value.shape[:1] == (classes,) else value)


def shift_moments(envelope: Envelope, turn: Turn) -> None:
    """Send moments of one batch of mean 30, as if of very many."""
    parts = {"count": 1.0, "first": 30.0, "second": 1.0}
    each(envelope, lambda name, value: np.full_like(value, parts[name.rpartition(".")[2]] * 2**40), messages.MOMENTS)


def boast(envelope: Envelope, turn: Turn) -> None:
    """Report an accuracy of 1 on ten million examples."""
    numbers = {name for name, value in envelope.metrics.items() if isinstance(value, float)}
    envelope.metrics |= {name: float("accuracy" in name) for name in numbers} | {messages.NUM_EXAMPLES: 10_000_000}


def each(envelope: Envelope, change: Callable[[str, Any], Any], record: str = messages.ARRAYS) -> None:
    """Change all arrays of a record."""
    for name, array in envelope.arrays[record].items():
        value = array.numpy()
        envelope.arrays[record][name] = Array(np.array(change(name, value), value.dtype, order="C"))


# Flower's SuperLink with SQLite refuses all requests while it notes thousands of objects, so such a node ends any run.
WIRE_BOMBS = {name: forge for name, forge in BOMBS.items() if name != "ten thousand objects"}
STALLS: Mapping[str, Attack] = {
    "objects withheld": forged(withheld, answers=False),
    "all but one object": forged(hoarded, answers=False),
    "500 small objects and a gap": forged(small_objects_and_a_gap, answers=False),
}
REFUSED: Mapping[str, Attack] = {
    **{name: forged(forge) for name, forge in {**GARBAGE, **WIRE_BOMBS}.items()},
    **STALLS,
    **{f"fields: {kind}": mutated(kind) for kind in ("shapes", "claims", "headers", "stypes", "sizes")},
    "fields: not finite": Attack(partial(changed, further(np.nan))),
    "an old reply again": Attack(again, silent_from=2, answers=False),
    "replies a round late": Attack(late, answers=False),
    "answers to others' messages": Attack(partial(to_others, own_name=True), answers=False),
}
LIES: Mapping[str, Attack] = {
    "sign flip, times 5": lie(further(-5.0)),
    "change times 20": lie(further(20.0)),
    "label rows shifted": lie(shift_rows),
    "moments of mean 30": lie(shift_moments, "query.moments"),
    "metrics of ten million": lie(boast, "evaluate"),
    "a million partitions": lie(
        lambda envelope, turn: envelope.config.update({messages.NUM_PARTITIONS: 10**6}), "query.capability"
    ),
    "ten million examples": lie(further(-5.0, 10_000_000)),
    "as others, ids known": Attack(partial(to_others, own_name=False), silent_from=0),
    "a second reply": Attack(twice, silent_from=0),
}
ATTACKS: Mapping[str, Attack] = {"none": Attack(lambda turn: [], (), 0), **REFUSED, **LIES}
"""By name. What is refused must leave the model as when these nodes are silent."""
