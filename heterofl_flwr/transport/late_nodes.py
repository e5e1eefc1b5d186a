"""``LateNodes``: proxy that detects SuperNodes that deliver each reply only when the next message arrives."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from heterofl_flwr.transport.compat import SUPERLINK_NODE_ID, set_metadata
from heterofl_flwr.transport.exchange import exchange, pulled
from heterofl_flwr.transport.messages import QUERY_CAPABILITY, LocalFault, error_reply
from heterofl_flwr.transport.relay import Relay

GRACE_SECONDS = 10.0
"""Seconds to wait for the next reply of a late node, in addition to twice the longest time that a reply took."""

REMEMBERED = 4
"""Maximum number of message ids stored for a node, to detect late replies to cancelled messages."""

LATE = "its SuperNode answers one message late: restart it"


@dataclass(slots=True)
class _Sent:
    """Message that has no reply yet.

    ``behind`` is the time at which the node's late reply to an earlier message arrived; None if no such reply arrived.
    """

    node_id: int
    kind: str
    since: float
    behind: float | None = None


class LateNodes(Relay):
    """Proxy for a SuperLink's grid that stops waiting for SuperNodes whose replies come one message late.

    In Flower 1.41 and 1.42, a SuperNode may deliver each reply only when the next message arrives, until it is
    restarted. After such a late reply, the proxy waits only a limited time for the reply to the latest message, and
    then returns an error. A late reply to a capability query, if it is no error, is used as the reply to the next
    capability query.
    """

    # If a node's late reply arrives before the next message is sent, the node was only slow. The limit is twice the
    # longest time of a reply to this type of message, plus ``GRACE_SECONDS``.

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._sent: dict[str, _Sent] = {}
        self._unanswered: dict[int, list[str]] = {}  # ids of cancelled messages by node, the oldest first
        self._longest: dict[str, float] = {}  # most seconds that a reply took, by message type
        self._ready: dict[str, Message] = {}  # late replies that answer a new query, by id of the old query

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids.

        A capability query is not sent to a node whose reply to an earlier capability query has arrived late and without
        an error. The returned ids then contain the id of the earlier query. The ids are in no particular order.
        """
        answered, sent = dict[int, str](), list[Message]()
        for message in messages:
            node_id, kind = message.metadata.dst_node_id, message.metadata.message_type
            earlier = self._unanswered.get(node_id, [])
            for reply in pulled(self._grid, list(earlier)) if earlier else ():
                about = reply.metadata.reply_to_message_id
                if kind == self._sent[about].kind == QUERY_CAPABILITY and not reply.has_error():
                    answered[node_id], self._ready[about] = about, reply
                else:
                    self._forget(about)
            if node_id not in answered:
                sent.append(message)
        ids, now = list(self._grid.push_messages(sent)) if sent else [], time.monotonic()
        for id_, message in zip(ids, sent, strict=False):
            if id_:
                self._sent[id_] = _Sent(message.metadata.dst_node_id, message.metadata.message_type, now)
        return [*ids, *answered.values()]  # the order is arbitrary, as exchange() does not use it

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived, and an error for each reply that is no longer awaited."""
        ids = list(message_ids)
        earlier = {
            before: id_
            for id_ in ids
            if (sent := self._sent.get(id_))
            for before in self._unanswered.get(sent.node_id, ())
            if before != id_
        }
        now, replies = time.monotonic(), [self._ready.pop(id_) for id_ in ids if id_ in self._ready]
        answered = {reply.metadata.reply_to_message_id for reply in replies}
        for id_ in answered:
            self._forget(id_)
        for reply in pulled(self._grid, [id_ for id_ in (*ids, *earlier) if id_ in self._sent]):
            about = reply.metadata.reply_to_message_id
            if about not in self._sent:
                continue
            if about in earlier:
                if not self._takes_late(reply, earlier[about], now):
                    continue
                about = earlier[about]
            else:
                sent = self._sent[about]
                self._longest[sent.kind] = max(now - sent.since, self._longest.get(sent.kind, 0.0))
                self._forget(about)
            if about not in answered:
                answered.add(about)
                replies.append(reply)
        for id_ in ids:
            if id_ not in answered and self._is_given_up(id_, now):
                self.cancel([id_])
                replies.append(error_reply(id_, self._grid.run.run_id, SUPERLINK_NODE_ID, LocalFault(LATE, "late")))
        return replies

    def _takes_late(self, reply: Message, id_: str, now: float) -> bool:
        about = reply.metadata.reply_to_message_id
        kinds = {self._sent[sent_id].kind for sent_id in (about, id_) if sent_id in self._sent}
        self._forget(about)
        if kinds == {QUERY_CAPABILITY} and not reply.has_error():
            set_metadata(reply, reply_to_message_id=id_)
            self.cancel([id_])  # the reply to id_ itself comes later, and is then late too
            return True
        if id_ in self._sent:
            self._sent[id_].behind = now
        return False

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and yield the replies, for at most ``timeout`` seconds."""
        return exchange(self, messages, timeout=timeout, in_order=False)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Cancel messages, but keep up to ``REMEMBERED`` cancelled messages for each node, to detect late replies."""
        # For each node, the ids of the oldest message and of the newest messages are kept.
        dropped = []
        for id_ in message_ids:
            if (sent := self._sent.get(id_)) is None:
                dropped.append(id_)
                continue
            sent.behind = None
            remembered = self._unanswered.setdefault(sent.node_id, [])
            remembered += [] if id_ in remembered else [id_]
            if len(remembered) > REMEMBERED:
                dropped.append(remembered[1])
                self._forget(remembered[1])
        super().cancel(dropped)

    def _forget(self, id_: str) -> None:
        sent = self._sent.pop(id_, None)
        if sent is not None and id_ in self._unanswered.get(sent.node_id, ()):
            self._unanswered[sent.node_id].remove(id_)

    def _is_given_up(self, id_: str, now: float) -> bool:
        sent = self._sent.get(id_)
        if sent is None or sent.behind is None or sent.kind not in self._longest:
            return False
        return now > sent.behind + 2 * self._longest[sent.kind] + GRACE_SECONDS
