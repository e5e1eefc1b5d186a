"""The exchange loop over any grid: sending messages in a window, and replies in the order of their messages."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import SILENT, Fault, HeteroFLError, ReplyError, short
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.compat import NO_FUNCTION, SUPERLINK_NODE_ID, ErrorCode
from heterofl_flwr.transport.relay import Waits, cancel

LONGEST_PAUSE = 1.0
"""Seconds between two looks for replies on a grid that cannot wait for them."""

_NUMPY_CLIENT = "it is a NumPyClient, which needs heterofl_flwr.classic.HeteroFL as the server's strategy"
_MASKS = "it masks replies for Flower's SecAgg workflows: leave out that mod, and use stages=[SecureSum(...)] instead"
_REMEDIES = {
    "fitins.": _NUMPY_CLIENT,
    "evaluateins.": _NUMPY_CLIENT,
    "secagg_configs": _MASKS,
    "secaggplus_configs": _MASKS,
    "Error(s) in loading state_dict": messages.NOT_CONVERTED,
    "size mismatch": messages.NOT_CONVERTED,
    NO_FUNCTION.format("query"): messages.NOT_CONVERTED,
    "get_properties": messages.NOT_CONVERTED,
    "must have the same dtype": "build has parameters in another precision than the data: let build make them in "
    "float32, and train in half precision with torch.autocast",
}
"""Remedies by words of the errors that torch and Flower raise in apps that do not fit the server."""

GONE = (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED)
"""Errors of the SuperLink or the SuperNode about a node or a client process that is not there to answer."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def exchange(
    grid: Grid,
    sent: Iterable[Message],
    *,
    window: float = math.inf,
    timeout: float | None = None,
    enough: float = math.inf,
    in_order: bool = True,
) -> Iterator[Message]:
    """Send messages, and yield their replies without keeping them; the first messages are sent by the call itself.

    It needs ``push_messages`` and ``pull_messages`` alone, and uses what else a grid can do (``Waits``, ``Cancels``).
    What is not answered when the generator ends, or is closed, is dropped.

    Parameters
    ----------
    grid : Grid
        Any grid of Flower.
    sent : Iterable[Message]
        Messages to different nodes, or to one node several.
    window : float
        How many may be on their way, or answered and not yet yielded. More are sent when half of it is free, so that a
        ``LocalGrid`` has messages to group.
    timeout : float | None
        Seconds from this call on, in which the time counts that the caller works on replies. Replies that are not there
        by then are left out, and messages not sent by then are never sent.
    enough : float
        Number of replies without error after which the exchange ends.
    in_order : bool
        Whether replies come in the order of the messages, or as they arrive. Only in order does a ``LocalGrid`` run
        clients one by one, each when its reply is taken.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    flight = _Flight(grid, deque(sent), window, deadline, enough)
    del sent
    flight.refill()
    return flight.replies(in_order=in_order)


class _Flight:
    """The messages of one exchange: waiting messages, ids of sent ones, and replies not yet yielded."""

    def __init__(self, grid: Grid, waiting: deque[Message], window: float, deadline: float, enough: float) -> None:
        self._grid, self._waiting, self._deadline, self._enough = grid, waiting, deadline, enough
        self._window = int(min(window, max(len(waiting), 1)))
        self._out: dict[str, None] = {}  # a set in order
        self._arrived: dict[str, Message] = {}
        self._good = 0

    def refill(self) -> None:
        """Send what the window has room for, if that is half of it and there is time."""
        while (
            self._waiting
            and 2 * (room := self._window - len(self._out)) >= self._window
            and time.monotonic() < self._deadline
        ):
            # A list, because HttpGrid reads it twice. An id is empty or missing where the message could not be sent.
            batch = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            self._out |= {id_: None for id_ in self._grid.push_messages(batch) if id_}

    def replies(self, *, in_order: bool) -> Iterator[Message]:
        """Yield the replies."""
        try:
            while self._out and self._good < self._enough and (ready := self._await(in_order=in_order)):
                for id_ in ready:
                    del self._out[id_]
                    self.refill()
                    yield self._arrived.pop(id_)
            if self._out and self._good < self._enough:  # the deadline
                self._pull(self._missing(), 0.0)
            for id_ in [late for late in self._out if late in self._arrived]:
                del self._out[id_]
                yield self._arrived.pop(id_)
        finally:
            cancel(self._grid, list(self._out))

    def _await(self, *, in_order: bool) -> list[str]:
        """Wait for the first reply in the order of the messages, or for any; return the ids of those to yield now."""
        now = time.monotonic()
        if not in_order:
            if now < self._deadline:
                self._keep(first_replies(self._grid, self._missing(), self._deadline - now))
            return [id_ for id_ in self._out if id_ in self._arrived]
        # The first look is for one reply: a grid that runs clients when asked then runs only this client.
        began, id_ = now, next(iter(self._out))
        ids, pause = [id_], 0.0
        while id_ not in self._arrived and now < self._deadline:
            if pause:
                time.sleep(min(self._deadline - now, pause))
            self._pull(ids, self._deadline - now)
            if isinstance(self._grid, Waits):
                break
            now = time.monotonic()
            ids, pause = self._missing(), pause_after(now - began)
        return [id_] if id_ in self._arrived else []

    def _pull(self, ids: list[str], seconds: float) -> None:
        """Keep the replies that are there, having waited for them where the grid can."""
        if isinstance(self._grid, Waits):
            ids = self._grid.wait_for_replies(ids, None if seconds == math.inf else seconds)
        self._keep(pulled(self._grid, ids))

    def _keep(self, replies: Iterable[Message]) -> None:
        for reply in replies:
            self._arrived[reply.metadata.reply_to_message_id] = reply
            self._good += not reply.has_error()

    def _missing(self) -> list[str]:
        return [id_ for id_ in self._out if id_ not in self._arrived]


def pause_after(seconds: float) -> float:
    """Return the pause before the next look for replies, after ``seconds`` without any."""
    return min(LONGEST_PAUSE, 0.001 + 0.05 * seconds)


def pulled(grid: Grid, message_ids: Collection[str]) -> list[Message]:
    """Return the replies to these messages that are there."""
    # An error reply of the SuperLink names its message by this id alone.
    replies = grid.pull_messages(message_ids)
    return [reply for reply in replies if reply.metadata.reply_to_message_id in message_ids]


def first_replies(grid: Grid, message_ids: Collection[str], seconds: float) -> list[Message]:
    """Wait for the first reply to any of these messages, up to ``seconds``; return all replies that are there."""
    began = time.monotonic()
    while not (replies := pulled(grid, message_ids)) and (spent := time.monotonic() - began) < seconds:
        time.sleep(min(pause_after(spent), seconds - spent))
    return replies


def outcomes(sent: Sequence[Message], replies: Iterable[Message]) -> Iterator[tuple[int, Message | Fault]]:
    """Yield each node with its reply, or with why there is none, in the order of the messages sent.

    Only replies that come before their turn are held back, so replies that arrive in order are dropped one by one.
    Replies of nodes that were not asked, to another message than this, or a second one of the same node, are dropped
    with a warning.
    """
    order = [message.metadata.dst_node_id for message in sent]
    early: dict[int, Message] = {}
    pending = dict(zip(order, sent, strict=True))
    position = 0
    for reply in replies:
        node_id, about = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
        if node_id == SUPERLINK_NODE_ID:  # which answers for a node that is gone
            # Looked up now: a message gets its id when it is sent, which may be after the first replies came.
            node_id = next(
                (message.metadata.dst_node_id for message in sent if message.metadata.message_id == about), node_id
            )
        # Some grids give an id to a copy of the message only, and "" to the message itself.
        if node_id not in pending or pending[node_id].metadata.message_id not in ("", about):
            logger.warning("a reply of node %s is dropped: it was not asked this, or has answered already", node_id)
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
    """Return the reply, or the fault in place of a usable one."""
    if not reply.has_error():
        return reply
    error = reply.error
    if isinstance(error, messages.LocalFault):
        return Fault(error.reason or "", error.kind)
    reason = short(explained(f"error {error.code}: {error.reason or 'no reason given'}"))
    return Fault(reason, "gone" if error.code in GONE else "failed")


def explained(fault: str) -> str:
    """Return the reason of a client's failure, with the remedy if its words show one."""
    for words, remedy in _REMEDIES.items():
        if words.lower() in fault.lower():
            return f"{fault}; {remedy}"
    return fault


def read_each(
    sent: Sequence[Message],
    replies: Iterable[Message],
    read: Callable[[int, Message], Result],
    unusable: type[HeteroFLError] = ReplyError,
) -> Iterator[tuple[int, Result | Fault]]:
    """Yield what ``read`` makes of the replies, in the order of the messages, or why there is nothing to use."""
    for node_id, outcome in outcomes(sent, replies):
        if isinstance(outcome, Fault):
            yield node_id, outcome
            continue
        try:
            result: Result | Fault = read(node_id, outcome)
        except unusable as error:
            result = Fault(short(str(error)), "rejected")
        del outcome  # before the next one is waited for
        yield node_id, result


def query(
    grid: Grid,
    kind: str,
    configs: Mapping[int, Mapping[str, object]],
    seconds: float,
    read: Callable[[Message, str], Result],
) -> dict[int, Result | Fault]:
    """Send each client a query with its config; return each answer, or the fault in its place."""
    sent = [
        Message(RecordDict({messages.CONFIG: messages.new_config(config)}), node_id, kind)
        for node_id, config in configs.items()
    ]
    replies = grid.send_and_receive(sent, timeout=seconds) if sent else []
    return dict(read_each(sent, replies, lambda node_id, reply: read(reply, f"node {node_id}"), HeteroFLError))
