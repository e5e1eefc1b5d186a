"""Messages of a round and their replies."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from inspect import GEN_CLOSED, GEN_CREATED, getgeneratorstate, isgenerator
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import SILENT, ConfigError, Fault, HeteroFLError, ReplyError, short
from heterofl_flwr.federation.callbacks import RoundCallback
from heterofl_flwr.federation.evaluation_round import EvaluationRound
from heterofl_flwr.federation.round import Round
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.strategies.time_budget import Budget
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.arrays import content_bytes
from heterofl_flwr.transport.compat import SUPERLINK_NODE_ID
from heterofl_flwr.transport.exchange import fault_of

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class RoundMessages:
    """The messages of one server round.

    Attributes
    ----------
    current
        The open training or evaluation round, or None.
    silent
        Clients without a reply to the training message, because the reply is late or the node has gone.
    sent
        Messages of the current exchange.
    """

    def __init__(self, server_round: int, timeout: float, *, timed: bool = False) -> None:
        self.server_round, self._timeout = server_round, timeout
        self._budget = Budget(timeout) if timed else None
        self.silent: set[int] = set()
        self.sent: list[Message] = []
        self.current: Round | EvaluationRound | None = None
        self._received: dict[str, int | Fault] = {}  # size of the reply in bytes, or its fault, by message id
        self._watched: Generator[Message, None, None] | None = None  # replies of the current exchange

    @property
    def budget(self) -> Budget:
        """Time limit of the round. If ``timed`` is False (outside ``start``), each access returns a new ``Budget``."""
        return self._budget or Budget(self._timeout)

    def open(self, current: Round | EvaluationRound) -> None:
        """Begin the exchange of a training or evaluation round."""
        self.current = current
        if isinstance(current, Round):
            self.silent = current.silent
        self.sent, self._received = [], {}

    def restrict(self, sent: Iterable[Message]) -> None:
        """Remove from the round all clients that have no message in ``sent``; replace the messages of the others."""
        actual = {message.metadata.dst_node_id: message for message in sent}
        node_ids = [message.metadata.dst_node_id for message in self.sent]
        for node_id in node_ids:
            if self.current is not None and node_id not in actual:
                self.current.leave_out(node_id)
        self.sent = [actual[node_id] for node_id in node_ids if node_id in actual]

    def watch(
        self, replies: Iterable[Message], what: str, number: int, callbacks: Sequence[RoundCallback]
    ) -> Iterator[Message]:
        """Yield ``replies``; call ``on_reply`` of the callbacks, and record the size or the fault of each reply."""
        self._received, self._watched = {}, self._watch(replies, what, number, callbacks)
        return self._watched

    def _watch(
        self, replies: Iterable[Message], what: str, number: int, callbacks: Sequence[RoundCallback]
    ) -> Generator[Message, None, None]:
        done = failed = 0
        # Clients may train on all cores meanwhile; the threads of a sum would then spin while they wait for each other.
        with torch_threads(1):
            for callback in callbacks:
                callback.on_reply(what, 0, number, 0)
            for reply in replies:
                size_or_fault = fault_of(reply.error) if reply.has_error() else content_bytes(reply.content)
                self._received[reply.metadata.reply_to_message_id] = size_or_fault
                done += 1
                failed += reply.has_error()
                for callback in callbacks:
                    callback.on_reply(what, done, number, failed)
                yield reply
                del reply  # keep no reference, so that the consumer can free it

    def read(
        self, current: Round | EvaluationRound, replies: Iterable[Message], read: Callable[[int, Message], None]
    ) -> None:
        """Call ``read`` for each reply; refuse each client whose reply is missing, unusable or an error reply.

        A client is not refused if a subclass of the strategy dropped its reply, or ended the round before it read the
        reply. Such a client is removed from the round without a failure. Raise ``ConfigError`` if ``replies`` is a
        generator that has been read already, also in part.
        """
        if self._received and isgenerator(replies) and getgeneratorstate(replies) != GEN_CREATED:
            raise ConfigError(
                f"round {self.server_round}: replies ({len(self._received)}) were read before this strategy got them, "
                f"and can be read only once: let an overriding method begin with replies = list(replies)"
            )
        ids = {message.metadata.dst_node_id: message.metadata for message in self.sent}

        def read_timed(node_id: int, reply: Message) -> None:
            read(node_id, reply)
            if isinstance(current, Round):
                current.remarks.note_clock(node_id, ids[node_id].created_at, reply.metadata.created_at)

        for node_id, fault in read_each(self.sent, replies, read_timed):
            if fault is None:
                continue
            received: int | Fault | None = None
            if fault.kind == "silent":
                is_unread = self._watched is not None and getgeneratorstate(self._watched) != GEN_CLOSED
                received = self._received.get(ids[node_id].message_id, 0 if is_unread else None)
            if isinstance(received, int):
                current.leave_out(node_id, received)
            else:
                current.refuse(node_id, received or fault)
        self.sent, self._watched = [], None


def outcomes(sent: Sequence[Message], replies: Iterable[Message]) -> Iterator[tuple[int, Message | Fault]]:
    """Yield each node id with the node's reply or fault, in the order of the messages ``sent``.

    Replies to other messages, and second replies, are dropped with a warning.
    """
    order = [message.metadata.dst_node_id for message in sent]
    early: dict[int, Message] = {}
    pending = dict(zip(order, sent, strict=True))
    position = 0
    for reply in replies:
        node_id, about = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
        if node_id == SUPERLINK_NODE_ID:  # the SuperLink answers for a node that has gone
            # Looked up now: a message gets its id when it is sent, which may be after the first replies.
            node_id = next(
                (message.metadata.dst_node_id for message in sent if message.metadata.message_id == about), node_id
            )
        # Some grids give an id to a copy of the message only; the message itself keeps the id "".
        if node_id not in pending or pending[node_id].metadata.message_id not in ("", about):
            logger.warning(
                "a reply of node %s is dropped: the node was not asked this, or has answered already", node_id
            )
            continue
        del pending[node_id]
        early[node_id] = reply
        del reply  # the consumer alone decides how long a reply lives
        while position < len(order) and order[position] in early:
            yield order[position], reply_or_fault(early.pop(order[position]))
            position += 1
    for node_id in order[position:]:
        yield node_id, reply_or_fault(early.pop(node_id)) if node_id in early else Fault(SILENT, "silent")


def reply_or_fault(reply: Message) -> Message | Fault:
    """Return the reply, or its fault if it is an error reply."""
    return fault_of(reply.error) if reply.has_error() else reply


def read_each(
    sent: Sequence[Message],
    replies: Iterable[Message],
    read: Callable[[int, Message], Result],
    unusable: type[HeteroFLError] = ReplyError,
) -> Iterator[tuple[int, Result | Fault]]:
    """Yield each node id with the result of ``read(node_id, reply)`` or with a fault, in the order of ``sent``.

    A fault stands for a missing reply, an error reply, or an error of type ``unusable`` that ``read`` raised.
    """
    for node_id, outcome in outcomes(sent, replies):
        if isinstance(outcome, Fault):
            yield node_id, outcome
            continue
        try:
            result: Result | Fault = read(node_id, outcome)
        except unusable as error:
            result = Fault(short(str(error)), "rejected")
        del outcome  # free the reply before waiting for the next one
        yield node_id, result


def query(
    grid: Grid,
    kind: str,
    configs: Mapping[int, Mapping[str, object]],
    seconds: float,
    read: Callable[[int, Message], Result],
) -> dict[int, Result | Fault]:
    """Send a query to each client in ``configs``; return, by node id, the result of ``read`` or a fault.

    A fault stands for a missing reply, an error reply, or a ``HeteroFLError`` of ``read``.
    """
    sent = [
        Message(RecordDict({messages.CONFIG: messages.new_config(config)}), node_id, kind)
        for node_id, config in configs.items()
    ]
    replies = grid.send_and_receive(sent, timeout=seconds) if sent else []
    return dict(read_each(sent, replies, read, HeteroFLError))
