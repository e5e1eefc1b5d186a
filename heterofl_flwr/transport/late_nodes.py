"""``LateNodes``: notices SuperNodes that answer one message late, so that no round waits for them."""

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
"""Time for a node that is one message behind, beyond twice the time that others take."""

REMEMBERED = 4
"""Upper bound of the messages of a node that are remembered."""

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
    the next message arrives, until it is restarted. So messages that a node left unanswered are remembered.

    - If its reply is there before the next message is sent, the node was merely slow.
    - If its reply arrives while the next message is under way, that message is given up once it takes twice as long as
      any other message of its kind has taken.
    - The reply to a capability query also counts as the reply to a later one, which is not sent if it is there already.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._sent: dict[str, _Sent] = {}
        self._unanswered: dict[int, list[str]] = {}  # messages by node, the oldest first
        self._longest: dict[str, float] = {}  # seconds that any reply took, by kind of message
        self._ready: dict[str, Message] = {}  # answers to earlier queries, by message id

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; replies to earlier ones that have arrived meanwhile are dropped, or are the answers."""
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
        return [*ids, *answered.values()]  # an exchange needs the ids in no order

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, and an error for each message that is given up."""
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
        """Whether a late reply answers a message under way; if not, note that its node is one message behind."""
        about = reply.metadata.reply_to_message_id
        kinds = {self._sent[sent_id].kind for sent_id in (about, id_) if sent_id in self._sent}
        self._forget(about)
        if kinds == {QUERY_CAPABILITY} and not reply.has_error():
            set_metadata(reply, reply_to_message_id=id_)
            self.cancel([id_])  # its own reply is still to come
            return True
        if id_ in self._sent:
            self._sent[id_].behind = now
        return False

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and yield the replies as they come, up to ``timeout`` seconds."""
        return exchange(self, messages, timeout=timeout, in_order=False)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Give messages up; of each node the oldest one and the latest are remembered."""
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
        """Forget a message."""
        sent = self._sent.pop(id_, None)
        remembered = [] if sent is None else self._unanswered.get(sent.node_id, [])
        if sent is not None and id_ in remembered:
            remembered.remove(id_)
            if not remembered:
                del self._unanswered[sent.node_id]

    def _is_given_up(self, id_: str, now: float) -> bool:
        """Whether a message went to a node that is one message behind, and others have answered long ago."""
        sent = self._sent.get(id_)
        if sent is None or sent.behind is None or sent.kind not in self._longest:
            return False
        return now > sent.behind + 2 * self._longest[sent.kind] + GRACE_SECONDS


def _error(about: str, run_id: int) -> Message:
    """Return the error reply to a message that is given up."""
    error: Error = LocalFault(LATE, "late")
    return error_reply(about, run_id, SUPERLINK_NODE_ID, error)
