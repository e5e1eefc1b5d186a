"""The exchange of messages with nodes over any grid."""

import logging
import math
import re
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator

from flwr.app import Error, Message
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import Fault, short
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.compat import NO_FUNCTION, ErrorCode
from heterofl_flwr.transport.relay import Waits, cancel

LONGEST_PAUSE = 1.0
"""Longest pause in seconds between two polls of a grid that cannot wait for replies."""

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
    "Node Unavailable": "see the log of its SuperNode, and start it again",
    "must have the same dtype": "build has parameters in another precision than the data: let build make them in "
    "float32, and train in half precision with torch.autocast",
}
"""Remedies for errors that torch and Flower raise in client apps, by words in the error's text."""

_WRAPPER = "Exception ClientAppException occurred. Message: "
"""Text with which Flower begins the error of a ClientApp, twice in a simulation."""

_RAISED = re.compile(r"^<class '(?:[\w<>]+\.)*(\w+)'>:<'(.*)'>$", re.DOTALL)
"""Text of an error that a ClientApp raised on a SuperNode."""

GONE = (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED)
"""Error codes by which the SuperLink or a SuperNode reports that a node or a client process has gone."""


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
    """Send messages; return a generator of the replies.

    The first messages are sent by the call itself. Unanswered messages are cancelled at the end.

    Parameters
    ----------
    grid : Grid
        Any grid of Flower.
    sent : Iterable[Message]
        The messages; a node may get several.
    window : float
        Maximum number of sent messages whose replies have not been yielded yet. More messages are sent when half of the
        window is free, so that a ``LocalGrid`` can group them.
    timeout : float | None
        Time limit in seconds from this call; later replies are left out. Time in which the caller works on replies
        counts too.
    enough : float
        The exchange ends when this number of replies without an error has arrived.
    in_order : bool
        True yields replies in the order of the messages, False in the order of arrival. With True, a ``LocalGrid``
        runs each client only when its reply is taken.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    flight = _Flight(grid, deque(sent), window, deadline, enough)
    del sent
    flight.refill()
    return flight.replies(in_order=in_order)


class _Flight:
    def __init__(self, grid: Grid, waiting: deque[Message], window: float, deadline: float, enough: float) -> None:
        self._grid, self._waiting, self._deadline, self._enough = grid, waiting, deadline, enough
        self._window = int(min(window, max(len(waiting), 1)))
        self._out: dict[str, None] = {}  # ordered set of message ids
        self._arrived: dict[str, Message] = {}
        self._good = 0

    def refill(self) -> None:
        while (
            self._waiting
            and 2 * (room := self._window - len(self._out)) >= self._window
            and time.monotonic() < self._deadline
        ):
            # A list, because HttpGrid reads it twice. An id is empty or missing if its message could not be sent.
            batch = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            self._out |= {id_: None for id_ in self._grid.push_messages(batch) if id_}

    def replies(self, *, in_order: bool) -> Iterator[Message]:
        try:
            while self._out and self._good < self._enough and (ready := self._await(in_order=in_order)):
                for id_ in ready:
                    del self._out[id_]
                    self.refill()
                    yield self._arrived.pop(id_)
            if self._out and self._good < self._enough:  # the deadline is over: collect the replies that have arrived
                self._pull(self._missing(), 0.0)
            for id_ in [late for late in self._out if late in self._arrived]:
                del self._out[id_]
                yield self._arrived.pop(id_)
        finally:
            cancel(self._grid, list(self._out))

    def _await(self, *, in_order: bool) -> list[str]:
        """Wait for any reply or, if ``in_order``, for the next reply in the order of the messages.

        Return the ids of the messages whose replies to yield, or [] at the deadline.
        """
        now = time.monotonic()
        if not in_order:
            if now < self._deadline:
                self._keep(first_replies(self._grid, self._missing(), self._deadline - now))
            return [id_ for id_ in self._out if id_ in self._arrived]
        # First ask for one reply only: a grid that runs clients on demand then runs only this client.
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
    """Return the seconds until the next poll, after ``seconds`` without a reply."""
    return min(LONGEST_PAUSE, 0.001 + 0.05 * seconds)


def pulled(grid: Grid, message_ids: Collection[str]) -> list[Message]:
    """Poll the grid once; return the replies to ``message_ids`` that have arrived."""
    # reply_to_message_id is the only id by which an error reply of the SuperLink refers to its message.
    replies, asked = grid.pull_messages(message_ids), {*message_ids}
    return [reply for reply in replies if reply.metadata.reply_to_message_id in asked]


def first_replies(grid: Grid, message_ids: Collection[str], seconds: float) -> list[Message]:
    """Wait up to ``seconds`` for a reply; return all replies that have arrived."""
    began = time.monotonic()
    while not (replies := pulled(grid, message_ids)) and (spent := time.monotonic() - began) < seconds:
        time.sleep(min(pause_after(spent), seconds - spent))
    return replies


def fault_of(error: Error) -> Fault:
    """Return the ``Fault`` in an error reply."""
    if isinstance(error, messages.LocalFault):
        return Fault(error.reason or "", error.kind)
    reason = short(explained(f"error {error.code}: {cause_of(error.reason or '') or 'no reason given'}"))
    return Fault(reason, "gone" if error.code in GONE else "failed")


def cause_of(reason: str) -> str:
    """Return the error of a ClientApp without the errors in which Flower wraps it, and without a traceback of Ray.

    The type is in front of the error if it is known. Other texts are returned unchanged.
    """
    _, wrapped, cause = reason.removesuffix("'>").rpartition(_WRAPPER)
    if not (wrapped and cause):
        return _RAISED.sub(r"\1: \2", reason)
    line = re.search(rf"^([\w.]+): {re.escape(cause)}$", reason, re.MULTILINE)
    return f"{line[1].rpartition('.')[2]}: {cause}" if line else cause


def explained(fault: str) -> str:
    """Return the text of a client's error, with a remedy if the error is common."""
    for words, remedy in _REMEDIES.items():
        if words.lower() in fault.lower():
            return f"{fault}; {remedy}"
    return fault
