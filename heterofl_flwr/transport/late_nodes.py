"""``LateNodes``: proxy for a SuperLink's grid that detects SuperNodes whose replies come one message late."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Error, Message
from flwr.serverapp import Grid

from heterofl_flwr.transport.compat import SUPERLINK_NODE_ID, set_metadata
from heterofl_flwr.transport.exchange import exchange, pulled
from heterofl_flwr.transport.messages import QUERY_CAPABILITY, LocalFault, error_reply
from heterofl_flwr.transport.relay import Relay

GRACE_SECONDS = 10.0
"""Seconds to wait for a node that answers one message late, in addition to twice the longest time of a reply."""

REMEMBERED = 4
"""Maximum number of unanswered messages stored for a node."""

LATE = "its SuperNode answers one message late: restart it"


@dataclass(slots=True)
class _Sent:
    """A message without a reply so far.

    ``since`` is the time when the message was sent. ``behind`` is the time when its node answered an earlier message
    instead; None if it did not.
    """

    node_id: int
    kind: str
    since: float
    behind: float | None = None


class LateNodes(Relay):
    """Proxy for a SuperLink's grid that stops waiting for SuperNodes that answer one message late.

    Such a SuperNode delivers each reply only when the next message arrives, until it is restarted. In Flower 1.41, this
    happens to a SuperNode if a run ends while it confirms a message. To detect it, the proxy stores the ids of
    unanswered messages:

    - If the late reply arrives before the next message is sent, the node was only slow.
    - If the late reply arrives after the next message was sent, the node answers one message late. The proxy then
      limits the time for the reply to the next message. The limit is twice the longest time that a reply to this type
      of message took, plus ``GRACE_SECONDS``. After this time, the proxy returns an error for the next message.
    - A late reply to a capability query answers the next capability query too. If the reply arrives before that query
      is sent, the query is not sent.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._sent: dict[str, _Sent] = {}
        self._unanswered: dict[int, list[str]] = {}  # ids of cancelled messages by node, the oldest first
        self._longest: dict[str, float] = {}  # most seconds that a reply took, by message type
        self._ready: dict[str, Message] = {}  # late replies that answer a new query, by message id

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, after reading late replies of the nodes to which they go.

        A late answer to a capability query replaces a new query, which is not sent. Other late replies are dropped.
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
        """Return the replies that have arrived, and an error for each message whose reply is no longer awaited."""
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
                replies.append(_error(id_, self._grid.run.run_id))
        return replies

    def _takes_late(self, reply: Message, id_: str, now: float) -> bool:
        """Whether a late reply also answers the message ``id_``; if not, record that the node answers too late."""
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
        """Send messages and yield the replies in the order of arrival, up to ``timeout`` seconds."""
        return exchange(self, messages, timeout=timeout, in_order=False)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Cancel messages. To detect late replies, the ids of the oldest and newest of each node are stored."""
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
        """Delete a message from all tables."""
        sent = self._sent.pop(id_, None)
        remembered = [] if sent is None else self._unanswered.get(sent.node_id, [])
        if sent is not None and id_ in remembered:
            remembered.remove(id_)
            if not remembered:
                del self._unanswered[sent.node_id]

    def _is_given_up(self, id_: str, now: float) -> bool:
        """Whether the time for the reply to a message is over, because its node answers one message late."""
        sent = self._sent.get(id_)
        if sent is None or sent.behind is None or sent.kind not in self._longest:
            return False
        return now > sent.behind + 2 * self._longest[sent.kind] + GRACE_SECONDS


def _error(about: str, run_id: int) -> Message:
    """Return the error reply to a message whose reply is no longer awaited."""
    error: Error = LocalFault(LATE, "late")
    return error_reply(about, run_id, SUPERLINK_NODE_ID, error)
