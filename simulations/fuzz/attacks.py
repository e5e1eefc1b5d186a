"""What a hostile node does with its good reply before it crosses the wire."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from heterofl_flwr import messages as wire
from heterofl_flwr.compat import make_message
from simulations.fuzz.forgeries import (
    BOMBS,
    GARBAGE,
    Forgery,
    Uploaded,
    as_it_is,
    hoarded,
    small_objects_and_a_gap,
)
from simulations.fuzz.forgeries import withheld as withheld_objects
from simulations.fuzz.mutations import MUTATIONS, Envelope

Outgoing = tuple[Message, Uploaded]
"""What is announced, and what is uploaded."""


@dataclass
class Turn:
    """A message to a hostile node."""

    asked: Message  # the message
    reply: Message  # what a good node would answer
    server_round: int  # of the message; 0 where it names none
    sent: list[Message] = field(default_factory=list)  # the good replies of this node to earlier instructions to train
    # the messages that other nodes have not answered yet, which no node knows of another
    others: Sequence[Message] = ()

    @property
    def trains(self) -> bool:
        """Whether the message is an instruction to train."""
        return self.asked.metadata.message_type == "train"


@dataclass(frozen=True, slots=True)
class Attack:
    """What a node sends; from which round on, and to which messages, none of it may count. 0: a lie, which counts."""

    act: Callable[[Turn], list[Outgoing]]
    silent_from: int = 1
    kinds: Sequence[str] = ("train",)
    answers: bool = True  # whether the server has something to refuse, or no reply in time


def outgoing(message: Message, forge: Forgery = as_it_is) -> Outgoing:
    """Return a message with its upload; what is announced stays true."""
    message.metadata.__dict__["_message_id"] = message.object_id
    metadata = copy.copy(message.metadata)
    upload = forge(message)
    metadata.__dict__.update(_message_id=upload.head, _group_id=upload.group_id)
    if message.has_error():
        return make_message(metadata, error=message.error), upload
    return make_message(metadata, RecordDict()), upload


def honest(turn: Turn) -> list[Outgoing]:
    """Answer as a good node."""
    return [outgoing(turn.reply)]


def forged(forge: Forgery, answers: bool = True) -> Attack:
    """Return the attack that forges each reply but what the node can hold."""
    return Attack(
        lambda turn: [
            outgoing(turn.reply, as_it_is if turn.asked.metadata.message_type == "query.capability" else forge)
        ],
        kinds=("train", "query.moments", "evaluate"),
        answers=answers,
    )


def changed(change: Callable[[Envelope, Turn], None], kind: str = "train", silent_from: int = 1) -> Attack:
    """Return the attack that changes what replies of a kind hold."""

    def act(turn: Turn) -> list[Outgoing]:
        if turn.asked.metadata.message_type != kind:
            return honest(turn)
        envelope = Envelope.of(turn.reply)
        change(envelope, turn)
        return [outgoing(envelope.seal(turn.asked))]

    return Attack(act, silent_from)


def mutated(kind: str) -> Attack:
    """Return the attack that makes one of the fuzzer's changes."""
    return changed(lambda envelope, turn: MUTATIONS[kind](random.Random(turn.server_round), envelope))


def lie(change: Callable[[Envelope, Turn], None], kind: str = "train") -> Attack:
    """Return the attack whose replies fit, and count."""
    return changed(change, kind, 0)


def again(turn: Turn) -> list[Outgoing]:
    """Answer the first instruction, and send that reply again to each later one."""
    if not turn.trains:
        return honest(turn)
    turn.sent.append(turn.reply)
    return [outgoing(turn.sent[0])]


def late(turn: Turn) -> list[Outgoing]:
    """Send each reply when the next instruction comes."""
    if not turn.trains:
        return honest(turn)
    turn.sent.append(turn.reply)
    return [outgoing(message) for message in turn.sent[:-1]]


def twice(turn: Turn) -> list[Outgoing]:
    """Send a good reply, and then another one to the same message."""
    envelope = Envelope.of(turn.reply)
    flip(envelope, turn)
    return [outgoing(turn.reply), outgoing(envelope.seal(turn.asked))] if turn.trains else honest(turn)


def of_others(turn: Turn) -> list[Outgoing]:
    """Answer the messages of others, under this node's own name."""
    return _to_others(turn, turn.reply.metadata.src_node_id) if turn.trains else honest(turn)


def as_others(turn: Turn) -> list[Outgoing]:
    """Answer the messages of others, under their names; for that a node must know what it is never told."""
    return [*honest(turn), *(_to_others(turn, None) if turn.trains else [])]


def _to_others(turn: Turn, node_id: int | None) -> list[Outgoing]:
    envelope = Envelope.of(turn.reply)
    flip(envelope, turn)
    replies = [envelope.seal(other) for other in turn.others if other.metadata.message_type == "train"]
    for reply in replies:
        if node_id is not None:
            reply.metadata.__dict__["_src_node_id"] = node_id
    return [outgoing(reply) for reply in replies]


def flip(envelope: Envelope, turn: Turn) -> None:
    """Go five times as far in the opposite direction."""
    _further(envelope, turn, -5.0)


def shift_rows(envelope: Envelope, turn: Turn) -> None:
    """Send each class's row of the classifier as the next one's."""
    classes = len(turn.asked.content[wire.ARRAYS]) and list(envelope.arrays[wire.ARRAYS].values())[-1].shape[0]
    _each(envelope, lambda name, value: np.roll(value, 1, 0) if value.shape[:1] == (classes,) else value)


def shift_moments(envelope: Envelope, turn: Turn) -> None:
    """Send moments of one batch of mean 30, as if of very many."""
    del turn
    record = envelope.arrays[wire.MOMENTS]
    for name in record:
        value = record[name].numpy()
        part = name.rpartition(".")[2]
        factor = {"count": 0, "first": 30.0, "second": 1.0}[part] * 2.0**40
        record[name] = Array(np.full_like(value, 2**40 if part == "count" else factor))


def boast(envelope: Envelope, turn: Turn) -> None:
    """Report an accuracy of 1 on ten million examples."""
    del turn
    envelope.metrics |= {
        name: 1.0 if "accuracy" in name else 0.0 for name, value in envelope.metrics.items() if isinstance(value, float)
    }
    envelope.metrics[wire.NUM_EXAMPLES] = 10_000_000


def weigh(envelope: Envelope, turn: Turn) -> None:
    """Train on ten million examples, and go against the others."""
    flip(envelope, turn)
    envelope.metrics[wire.NUM_EXAMPLES] = 10_000_000


def _further(envelope: Envelope, turn: Turn, factor: float) -> None:
    sent = turn.asked.content[wire.ARRAYS]
    assert isinstance(sent, ArrayRecord)
    _each(envelope, lambda name, value: sent[name].numpy() + factor * (value - sent[name].numpy()))


def _each(envelope: Envelope, change: Callable[[str, "np.ndarray"], "np.ndarray"]) -> None:
    record = envelope.arrays[wire.ARRAYS]
    for name in record:
        value = record[name].numpy()
        record[name] = Array(np.ascontiguousarray(change(name, value).astype(value.dtype)))


# Flower's SuperLink with SQLite refuses all requests while it notes thousands of objects, so such a node ends any run.
WIRE_BOMBS = {name: forge for name, forge in BOMBS.items() if name != "ten thousand objects"}
STALLS: Mapping[str, Attack] = {
    "objects withheld": forged(withheld_objects, answers=False),
    "all but one object": forged(hoarded, answers=False),
    "500 small objects and a gap": forged(small_objects_and_a_gap, answers=False),
}
REFUSED: Mapping[str, Attack] = {
    **{name: forged(forge) for name, forge in {**GARBAGE, **WIRE_BOMBS}.items()},
    **STALLS,
    **{f"fields: {kind}": mutated(kind) for kind in ("shapes", "claims", "headers", "stypes", "sizes")},
    "fields: not finite": changed(lambda envelope, turn: _each(envelope, lambda name, value: value * np.nan)),
    "an old reply again": Attack(again, 2, answers=False),
    "replies a round late": Attack(late, answers=False),
    "answers to others' messages": Attack(of_others, answers=False),
}
LIES: Mapping[str, Attack] = {
    "sign flip, times 5": lie(flip),
    "change times 20": lie(lambda envelope, turn: _further(envelope, turn, 20.0)),
    "label rows shifted": lie(shift_rows),
    "moments of mean 30": lie(shift_moments, "query.moments"),
    "metrics of ten million": lie(boast, "evaluate"),
    "a million partitions": lie(
        lambda envelope, turn: envelope.config.update({wire.NUM_PARTITIONS: 10**6}), "query.capability"
    ),
    "ten million examples": lie(weigh),
    "as others, ids known": Attack(as_others, 0),
    "a second reply": Attack(twice, 0),
}
ATTACKS: Mapping[str, Attack] = {
    "none": Attack(honest, 0),
    **REFUSED,
    **LIES,
}
"""By name. What is refused must leave the model as when these nodes are silent."""
