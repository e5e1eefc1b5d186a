"""Replies that are forged byte by byte: what a node can announce to a SuperLink and upload, past Flower's own records.

A forgery takes a good reply, and returns what is uploaded.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message

from heterofl_flwr.compat import set_metadata
from simulations.flower_internals import ObjectTree, get_all_nested_objects, get_object_id, get_object_tree

SMALL_OBJECTS = 10_000
STALLING_OBJECTS = 500
CHUNK_TIMES = 2000
TEXT_BYTES = 8 * 2**20


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

    def largest(self) -> str:
        """Return the id of the largest object."""
        return max(self.objects, key=lambda own: len(self.objects[own] or b""))


Forgery = Callable[[Message], Uploaded]


def as_it_is(reply: Message) -> Uploaded:
    """Return a reply's upload, under the id that it has now."""
    reply.metadata.__dict__["_message_id"] = reply.object_id
    objects = {id_: own.deflate() for id_, own in get_all_nested_objects(reply).items()}
    return Uploaded(objects, reply.object_id, get_object_tree(reply))


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
    body = {"dtype": "float32", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [0] * CHUNK_TIMES}
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


def hoarded(reply: Message) -> Uploaded:
    """Send all objects but the largest, which no other reply has: objects that several have need no upload."""
    good = as_it_is(reply)
    return replace(good, objects={**good.objects, good.largest(): None})


def misattributed(reply: Message, **claims: object) -> Uploaded:
    """Say in the message that it is another node's, or answers another message."""
    set_metadata(reply, **claims)
    return as_it_is(reply)


def many_empty_objects(reply: Message) -> Uploaded:
    """Name and send many objects that are empty."""
    more = {f"{number:064x}": b"ArrayChunk  0\x00" for number in range(SMALL_OBJECTS)}
    return rewritten("RecordDict", None, reply, more)


def many_small_objects(number: int) -> Forgery:
    """Return how a node names and sends small objects, each of which takes a request."""
    contents = [f"ArrayChunk  {len(str(own))}".encode() + b"\x00" + str(own).encode() for own in range(number)]
    return partial(rewritten, "RecordDict", None, more={get_object_id(own): own for own in contents})


def small_objects_and_a_gap(reply: Message) -> Uploaded:
    """Send all objects but the largest, and many that are small."""
    whole, gap = many_small_objects(STALLING_OBJECTS)(reply), as_it_is(reply).largest()
    return replace(whole, objects={**whole.objects, gap: None})


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
    "a long text beside the reply": lambda reply: replace(as_it_is(reply), group_id="x" * TEXT_BYTES),
    "numbers that grow in memory": many_numbers(200_000),
}
FORGERIES: Mapping[str, Forgery] = {**GARBAGE, **BOMBS}
"""What becomes an error of the node that sends it."""
