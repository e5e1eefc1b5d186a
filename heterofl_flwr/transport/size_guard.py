"""``Guarded``: proxy for a SuperLink's grid that checks each reply before it is unpacked.

Without the proxy, one node's reply can end the run, stall a round or fill the memory.
"""

import copy
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.transport import compat, messages
from heterofl_flwr.transport.compat import ErrorCode, get_object_head_values_from_object_content as head_of
from heterofl_flwr.transport.late_nodes import LateNodes
from heterofl_flwr.transport.relay import Relay

logger = logging.getLogger(__name__)

LargestReply = Callable[[Message], int]
"""Function from a sent message to the maximum size of its reply in bytes."""

OBJECT_BYTES = 128  # memory of an object besides its content, so that many empty objects reach the limit too
JSON_GROWTH = 8  # memory of numbers, as a multiple of their bytes in JSON
FETCH_SECONDS, TURN_SECONDS = 3.0, 0.2
"""Time limits in seconds for fetching objects of replies.

``FETCH_SECONDS`` is for one call of ``pull_messages``, ``TURN_SECONDS`` for one reply before the next has its turn.
Each object needs a separate request, and a reply may have thousands of objects.
"""


def guard(grid: Grid, largest_reply: LargestReply) -> Grid:
    """Return a proxy for a SuperLink's grid that checks replies, and gives up on late nodes (``LateNodes``).

    If the SuperLink's grid is inside a ``Relay``, return a copy of the ``Relay`` with the proxy inside. If there is no
    SuperLink's grid, return ``grid`` itself.
    """
    if isinstance(grid, Relay):
        inner = guard(grid._grid, largest_reply)
        if inner is grid._grid:
            return grid
        copied = copy.copy(grid)
        copied._grid = inner
        return copied
    return LateNodes(Guarded(grid, largest_reply)) if compat.has_runtime_client(grid) else grid


@dataclass(slots=True)
class _Announced:
    """A reply that a SuperLink has announced, and the objects of the reply that have been fetched.

    The SuperLink's list of objects is not used, because it may be wrong if several replies share an object.
    """

    message_id: str
    node_id: int
    about: str  # id of the message that this reply answers
    missing: dict[str, None]  # ordered set of the ids of objects to fetch
    largest: int
    num_bytes: int = 0
    contents: dict[str, bytes] = field(default_factory=dict)

    def add(self, content: bytes) -> None:
        """Store the content of the last object in ``missing``, and remove this object from ``missing``.

        Add to ``missing`` the objects that the content refers to, except stored ones. Raise ``ReplyError`` if the reply
        becomes too large.
        """
        id_, _ = self.missing.popitem()
        self.contents[id_] = content
        named = dict.fromkeys(head_of(content)[1])
        self.missing |= {id_: None for id_ in named if id_ not in self.contents}
        self.num_bytes += len(content) + OBJECT_BYTES * len(named)
        if self.num_bytes > self.largest:
            raise _too_large(self.largest)


class Guarded(Relay):
    """Proxy for a SuperLink's grid that checks replies before they are unpacked.

    An error reply replaces a reply that is too large, cannot be read, or names a wrong sender or a wrong message.
    """

    def __init__(self, grid: Grid, largest_reply: LargestReply) -> None:
        super().__init__(grid)
        self._superlink: Any = grid  # untyped, for attributes that are not public
        self._largest_reply = largest_reply
        self._largest: dict[str, int] = {}
        self._announced: dict[str, _Announced] = {}
        self._longest_answer: int | None = None
        if not compat.connect_length_check(grid, self._check_length):
            logger.warning(
                "with this version of Flower, the length of a response is known only after the response is read: "
                "against hostile nodes, use Flower 1.35 to 1.42 on the server"
            )

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids; store how large each reply may be."""
        messages = list(messages)
        largest = [self._largest_reply(message) for message in messages]
        ids = list(self._grid.push_messages(messages)) if messages else []
        # If the SuperLink refuses messages of this size, Flower logs the reason and returns no ids.
        self._largest.update((id_, most) for id_, most in zip(ids, largest, strict=False) if id_)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived. An error reply replaces an unusable reply."""
        ids = list(message_ids)
        replies = {id_: fault for id_ in ids if id_ not in self._announced and (fault := self._look_for(id_))}
        until = time.monotonic() + FETCH_SECONDS
        waiting = [self._announced[id_] for id_ in ids if id_ in self._announced]
        turns = deque(sorted(waiting, key=lambda reply: len(reply.contents)))  # replies with many objects come later
        while turns and time.monotonic() < until:
            announced = turns.popleft()
            before = len(announced.contents)
            if (reply := self._read(announced)) is not None:
                node, run_id = self._superlink.node, self.run.run_id
                request = compat.ConfirmMessageReceivedRequest(
                    node=node, run_id=run_id, message_object_id=announced.message_id
                )
                compat.runtime_client(self._superlink).ConfirmMessageReceived(request)  # the SuperLink then deletes it
                replies[announced.about] = reply
            elif len(announced.contents) > before:
                turns.append(announced)
        self.cancel(list(replies))
        return [replies[id_] for id_ in ids if id_ in replies]

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Forget these messages and their replies."""
        for id_ in message_ids:
            self._announced.pop(id_, None)
            self._largest.pop(id_, None)

    def _look_for(self, about: str) -> Message | None:
        """Ask the SuperLink for the reply to the message ``about``, and store its announcement, if any.

        Return an error reply if the announcement is unusable.
        """
        largest = self._largest.get(about, 0)
        # Each request is for one message: if a node makes its announcement too long, only this response is not read.
        request = compat.PullAppMessagesRequest(message_ids=[about])
        try:
            with self._no_longer_than(largest):
                response = compat.runtime_client(self._superlink).PullMessages(request)
                self._check_length(response.ByteSize())  # gRPC does not tell the length earlier
        except (ReplyError, ValueError) as error:  # ValueError: not a valid protobuf message
            return self._error(about, error)
        for message in response.messages_list:
            id_, node_id = message.metadata.message_id, message.metadata.src_node_id
            self._announced[about] = _Announced(id_, node_id, about, {id_: None}, largest)
        return None

    def _read(self, announced: _Announced) -> Message | None:
        """Fetch objects of a reply; return the reply if it is complete, an error reply if it is unusable, else None."""
        try:
            with self._no_longer_than(announced.largest):
                if not self._fetch(announced):
                    return None
            return _unpack(announced)
        except Exception as error:  # a forged reply can make json, protobuf and Flower raise almost any error
            return self._error(announced.about, error)

    def _fetch(self, announced: _Announced) -> bool:
        """Fetch objects of a reply for at most ``TURN_SECONDS``; return whether the reply is complete."""
        until = time.monotonic() + TURN_SECONDS
        while announced.missing:
            if time.monotonic() > until:
                return False
            id_ = next(reversed(announced.missing))
            request = compat.PullObjectRequest(node=self._superlink.node, run_id=self.run.run_id, object_id=id_)
            response = compat.runtime_client(self._superlink).PullObject(request)
            if not response.object_found:
                raise ReplyError("its node stopped while it sent (see the log of its SuperNode)")
            if not response.object_available:
                return False
            announced.add(response.object_content)
        return True

    @contextmanager
    def _no_longer_than(self, num_bytes: int) -> Iterator[None]:
        """Context in which a response of more than ``num_bytes`` raises ``ReplyError`` before it is read."""
        self._longest_answer = num_bytes
        try:
            yield
        finally:
            self._longest_answer = None

    def _check_length(self, num_bytes: int) -> None:
        longest = self._longest_answer
        if longest is not None and num_bytes > longest:
            raise _too_large(longest)

    def _error(self, about: str, error: Exception) -> Message:
        reason = f"unusable reply: {type(error).__name__}: {error}"
        signer = self._superlink.node.node_id  # the sender of error replies that Flower's grid makes
        return messages.error_reply(about, self.run.run_id, signer, Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))


def _unpack(announced: _Announced) -> Message:
    contents = announced.contents
    kinds = {id_: head_of(content)[0] for id_, content in contents.items()}
    json_bytes = sum(len(content) for id_, content in contents.items() if kinds[id_] != "ArrayChunk")
    if JSON_GROWTH * json_bytes > announced.largest:  # checked before any JSON is parsed
        raise _too_large(announced.largest)
    arrays = [content for id_, content in contents.items() if kinds[id_] == "Array"]
    unpacked = JSON_GROWTH * json_bytes + sum(_array_bytes(content, contents) for content in arrays)
    if unpacked > announced.largest:
        raise ReplyError(f"{unpacked:,} bytes in the reply when unpacked, expected up to {announced.largest:,}")
    message = compat.inflate_object_from_contents(announced.message_id, announced.contents)
    if not isinstance(message, Message) or not (message.has_error() or isinstance(message.content, RecordDict)):
        raise ReplyError("the reply is no message with records")
    claim = message.metadata
    if (claim.src_node_id, claim.reply_to_message_id) != (announced.node_id, announced.about):
        raise ReplyError(
            f"the reply names the sender {claim.src_node_id} and the message {claim.reply_to_message_id[:80]!r}; "
            f"expected the sender {announced.node_id} and the message {announced.about!r}"
        )
    compat.set_metadata(message, message_id=announced.message_id)  # Flower's grid does the same
    return message


def _array_bytes(content: bytes, contents: dict[str, bytes]) -> int:
    """Return the number of bytes of an array after its chunks are joined. A chunk may occur several times."""
    _, chunks, _ = head_of(content)
    places = json.loads(content.partition(compat.HEAD_BODY_DIVIDER)[2])["arraychunk_ids"]
    return sum(len(contents[chunks[place]]) for place in places)


def _too_large(most: int) -> ReplyError:
    return ReplyError(f"the reply has more than the {most:,} bytes that it may have; none of it is read")
