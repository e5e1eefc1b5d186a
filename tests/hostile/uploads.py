"""Replies that are forged byte by byte: what a node can announce to a SuperLink and upload, past Flower's own records.

A forgery takes a good reply, and returns what is uploaded.
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from heterofl_flwr.transport.compat import make_message, set_metadata
from tests.flower_internals import ObjectTree, get_all_nested_objects, get_object_id, get_object_tree


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What a node uploads."""

    objects: Mapping[str, bytes | None]  # by their id; None for one that is announced and withheld
    head: str  # the id of the message among them
    tree: ObjectTree  # what is announced
    group_id: str = ""  # what is written beside the message, where Flower has a text of any length

    @classmethod
    def flat(cls, objects: Mapping[str, bytes | None], head: str, parts: Iterable[ObjectTree] = ()) -> "Uploaded":
        """Return an upload that announces all objects as the message's own, with the same parts."""
        children = [ObjectTree(object_id=own, children=parts) for own in objects if own != head]
        return cls(objects, head, ObjectTree(object_id=head, children=children))


Forgery = Callable[[Message], Uploaded]
Outgoing = tuple[Message, Uploaded]
"""What is announced, and what is uploaded."""


def as_it_is(reply: Message) -> Uploaded:
    """Return a reply's upload, under the id that it has now."""
    reply.metadata.__dict__["_message_id"] = reply.object_id
    objects = {id_: own.deflate() for id_, own in get_all_nested_objects(reply).items()}
    return Uploaded(objects, reply.object_id, get_object_tree(reply))


def outgoing(message: Message, forge: Forgery = as_it_is) -> Outgoing:
    """Return a message with its upload; what is announced stays true."""
    message.metadata.__dict__["_message_id"] = message.object_id
    metadata = copy.copy(message.metadata)
    upload = forge(message)
    metadata.__dict__.update(_message_id=upload.head, _group_id=upload.group_id)
    if message.has_error():
        return make_message(metadata, error=message.error), upload
    return make_message(metadata, RecordDict()), upload


def replaced(good: Uploaded, old: str, body: bytes, more: Iterable[str] = ()) -> Uploaded:
    """Put another body into an object, and more ids into its head, and its new id into those above it."""
    objects = {id_: own for id_, own in good.objects.items() if own is not None}
    kind = ",".join([objects[old].partition(b"\x00")[0].decode().rpartition(" ")[0], *more])
    content = f"{kind} {len(body)}".encode() + b"\x00" + body
    while True:
        new = get_object_id(content)
        objects = {id_: own for id_, own in objects.items() if id_ != old} | {new: content}
        if old == good.head:
            return Uploaded.flat(objects, new)
        above = next(id_ for id_, own in objects.items() if old.encode() in own and id_ != new)
        content, old = objects[above].replace(old.encode(), new.encode()), above


def rewritten(kind: str, body: bytes | None, reply: Message, more: Mapping[str, bytes] | None = None) -> Uploaded:
    """Give the first object of a kind another body, if any, and let it name more objects."""
    good, more = as_it_is(reply), more or {}
    old, content = next((id_, own) for id_, own in good.objects.items() if own and own.startswith(f"{kind} ".encode()))
    named = replaced(good, old, content.partition(b"\x00")[2] if body is None else body, more)
    return Uploaded.flat({**named.objects, **more}, named.head)


def repeated_chunk(reply: Message) -> Uploaded:
    """Name one chunk many times."""
    body = {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 2000}
    return rewritten("Array", json.dumps(body).encode(), reply)


def too_large(reply: Message) -> Uploaded:
    """Send ten times the entries, and a mebibyte."""
    record = next(iter(reply.content.array_records.values()), ArrayRecord())
    size = sum(len(array.data) for array in record.values())
    reply.content["arrays"] = ArrayRecord({"weight": Array(np.zeros(10 * size + 2**20, np.uint8))})
    return as_it_is(reply)


def announced_flat(reply: Message) -> Uploaded:
    """Announce that no object but the message has parts: the SuperLink believes it of those that others send too."""
    good = as_it_is(reply)
    return Uploaded.flat(good.objects, good.head)


def announced_with_a_gap(reply: Message) -> Uploaded:
    """Announce that each object has a part that does not exist: the SuperLink believes it as well."""
    good = as_it_is(reply)
    return Uploaded.flat(good.objects, good.head, [ObjectTree(object_id=get_object_id(b"none"))])


def withheld(reply: Message) -> Uploaded:
    """Announce objects, and send none."""
    good = as_it_is(reply)
    return replace(good, objects=dict.fromkeys(good.objects))


def misattributed(reply: Message, **claims: object) -> Uploaded:
    """Say in the message that it is another node's, or answers another message."""
    set_metadata(reply, **claims)
    return as_it_is(reply)


def many_empty_objects(reply: Message) -> Uploaded:
    """Name and send many objects that are empty."""
    more = {f"{number:064x}": b"ArrayChunk  0\x00" for number in range(10_000)}
    return rewritten("RecordDict", None, reply, more)


def many_small_objects(number: int) -> Forgery:
    """Return how a node names and sends small objects, each of which takes a request."""
    contents = [f"ArrayChunk  {len(str(own))}".encode() + b"\x00" + str(own).encode() for own in range(number)]
    return partial(rewritten, "RecordDict", None, more={get_object_id(own): own for own in contents})


def many_numbers(number: int) -> Forgery:
    """Return how a node sends numbers that nobody asked for, which take more memory than they have bytes."""

    def forge(reply: Message) -> Uploaded:
        config = reply.content.config_records.get("config", ConfigRecord())
        reply.content["config"] = ConfigRecord({**config, "more": [0.5] * number})
        return as_it_is(reply)

    return forge


GARBAGE: Mapping[str, Forgery] = {
    "a config that is no JSON": partial(rewritten, "ConfigRecord", b"\xff garbage"),
    "a config that never closes": partial(rewritten, "ConfigRecord", b"[" * 2000),
    "records that are no mapping": partial(rewritten, "RecordDict", b"[[[["),
    "a chunk that is not there": partial(rewritten, "Array", b'{"arraychunk_ids": [5]}'),
    "a message that is no protobuf": partial(rewritten, "Message", b"\xff\xff\xff"),
    "the name of another node": lambda reply: misattributed(reply, src_node_id=reply.metadata.src_node_id ^ 1),
    "the reply to another message": lambda reply: misattributed(reply, reply_to_message_id="0" * 64),
}
BOMBS: Mapping[str, Forgery] = {
    "one chunk many times": repeated_chunk,
    "ten times the parameters": too_large,
    "ten thousand objects": many_empty_objects,
    "a long text beside the reply": lambda reply: replace(as_it_is(reply), group_id="x" * 2**23),
    "numbers that grow in memory": many_numbers(200_000),
}
FORGERIES: Mapping[str, Forgery] = {**GARBAGE, **BOMBS}
"""What becomes an error of the node that sends it."""
