"""``LateNodes``: notices SuperNodes that answer one message late, so that no round waits for them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Error, Message, Metadata
from flwr.serverapp import Grid

from heterofl_flwr.transport.compat import SUPERLINK_NODE_ID, SYSTEM_MESSAGE_TYPE, make_message, set_metadata
from heterofl_flwr.transport.exchange import Relay, exchange, pulled
from heterofl_flwr.transport.messages import QUERY_CAPABILITY, LocalFault

GRACE_SECONDS = 10.0
"""Time for a node that is one message behind, beyond twice the time that others take."""

LATE = "its SuperNode answers one message late: restart it"


@dataclass(slots=True)
class _Sent:
    """A message under way, and when a reply to the message before it arrived, if one did."""

    node_id: int
    kind: str
    since: float
    behind: float | None = None


class LateNodes(Relay):
    """Proxy for a SuperLink's grid that gives up messages to SuperNodes that are one message behind.

    If a run ends while a SuperNode of Flower 1.41 confirms a message, the SuperNode delivers each later reply only when
    the next message arrives, until it is restarted. So the last message that a node left unanswered is remembered.

    - If its reply is there before the next message is sent, the node was merely slow.
    - If its reply arrives while the next message is under way, that message is given up once it takes twice as long as
      any other message of its kind has taken.
    - Of two capability queries, the reply to the first counts as the reply to the second.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._sent: dict[str, _Sent] = {}
        self._unanswered: dict[int, str] = {}  # message by node
        self._longest: dict[str, float] = {}  # seconds that any reply took, by kind of message

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and drop replies to earlier ones that have arrived meanwhile."""
        messages = list(messages)
        for message in messages:
            earlier = self._unanswered.get(message.metadata.dst_node_id)
            if earlier is not None and pulled(self._grid, [earlier]):
                self._forget(earlier)
        ids, now = list(self._grid.push_messages(messages)) if messages else [], time.monotonic()
        for id_, message in zip(ids, messages, strict=False):
            if id_:
                self._sent[id_] = _Sent(message.metadata.dst_node_id, message.metadata.message_type, now)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, and an error for each message that is given up."""
        ids = list(message_ids)
        earlier = {
            self._unanswered[sent.node_id]: id_
            for id_ in ids
            if (sent := self._sent.get(id_)) and sent.node_id in self._unanswered
        }
        now, replies = time.monotonic(), list[Message]()
        answered: set[str] = set()
        for reply in pulled(self._grid, [*ids, *earlier]):
            about = reply.metadata.reply_to_message_id
            if about in earlier:
                id_ = earlier[about]
                kinds = {self._sent[about].kind, self._sent[id_].kind}
                self._forget(about)
                if kinds == {QUERY_CAPABILITY} and not reply.has_error():
                    set_metadata(reply, reply_to_message_id=id_)
                    self.cancel([id_])  # its own reply is still to come
                    answered.add(id_)
                    replies.append(reply)
                else:
                    self._sent[id_].behind = now
                continue
            if (sent := self._sent.get(about)) is not None:
                self._longest[sent.kind] = max(now - sent.since, self._longest.get(sent.kind, 0.0))
            self._forget(about)
            if about not in answered:
                answered.add(about)
                replies.append(reply)
        for id_ in ids:
            if id_ not in answered and self._is_given_up(id_, now):
                self.cancel([id_])
                replies.append(_error(id_, self._grid.run.run_id))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and yield the replies as they come, up to ``timeout`` seconds."""
        return exchange(self, messages, timeout=timeout, in_order=False)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Give messages up; the last one of each node is remembered."""
        dropped = []
        for id_ in message_ids:
            if (sent := self._sent.get(id_)) is None:
                dropped.append(id_)
                continue
            sent.behind = None
            before = self._unanswered.get(sent.node_id, id_)
            if before != id_:
                self._forget(before)
                dropped.append(before)
            self._unanswered[sent.node_id] = id_
        super().cancel(dropped)

    def _forget(self, id_: str) -> None:
        """Forget a message."""
        sent = self._sent.pop(id_, None)
        if sent is not None and self._unanswered.get(sent.node_id) == id_:
            del self._unanswered[sent.node_id]

    def _is_given_up(self, id_: str, now: float) -> bool:
        """Whether a message went to a node that is one message behind, and others have answered long ago."""
        sent = self._sent.get(id_)
        if sent is None or sent.behind is None or sent.kind not in self._longest:
            return False
        return now > sent.behind + 2 * self._longest[sent.kind] + GRACE_SECONDS


def _error(about: str, run_id: int) -> Message:
    """Return the error reply to a message that is given up."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=about,
        group_id="",
        created_at=time.time(),
        ttl=0,
        message_type=SYSTEM_MESSAGE_TYPE,
    )
    error: Error = LocalFault(LATE, "late")
    return make_message(metadata, error=error)
