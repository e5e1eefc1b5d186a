"""Grids around other grids: ``Windowed`` bounds the number of messages out, ``Watched`` reports what passes."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, cast

from flwr.app import Message
from flwr.serverapp import Grid

from heterofl_flwr.errors import check_count
from heterofl_flwr.strategies.instructions import cancel
from heterofl_flwr.strategies.size_guard import Relay

LONGEST_PAUSE = 1.0  # seconds between two looks for replies


class Windowed(Relay):
    """Let a grid keep few messages out, and yield its replies one by one.

    ``send_and_receive`` returns a generator: it yields replies in the order of the messages and keeps none that it has
    yielded. At most ``window`` messages are on their way, or answered and not yet yielded. So a round over any number
    of clients needs memory for ``window`` of them, if the strategy adds replies up as they come. More are sent when
    half of the window is free, so that a ``LocalGrid`` has messages to group.

    Everything else is done by the other grid, which the caller has to close: ``push_messages`` too, by which rounds
    with spare clients send theirs, all at once.

    Parameters
    ----------
    grid : Grid
        Any grid of Flower, or a ``LocalGrid``.
    window : int
        How many messages may be out. Fewer than twice what the grid works on at once leaves workers idle.
    """

    def __init__(self, grid: Grid, window: int) -> None:
        check_count("window", window, 1)
        super().__init__(grid)
        self._window = window

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send the first messages and return a generator of the replies, which sends the others.

        Replies that are not there ``timeout`` seconds after this call are left out, and messages not sent by then are
        never sent. The time in which the strategy works on replies counts.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        flight = _Flight(self._grid, deque(messages), self._window, deadline)
        del messages
        flight.refill()
        return flight.replies() if flight.out else []


class _Flight:
    """The messages of one call: those that wait, the ids of those that are out, the replies that came early."""

    def __init__(self, grid: Grid, waiting: deque[Message], window: int, deadline: float) -> None:
        self.out: deque[str] = deque()
        self._grid, self._waiting, self._window, self._deadline = grid, waiting, window, deadline
        self._here: dict[str, Message] = {}
        # A LocalGrid has it.
        self._wait: Callable[[list[str], float | None], list[str]] | None = getattr(grid, "wait_for_replies", None)

    def refill(self) -> None:
        """Send what the window has room for, if that is half of it and there is time."""
        while (
            self._waiting
            and 2 * (room := self._window - len(self.out)) >= self._window
            and time.monotonic() < self._deadline
        ):
            # A list, because HttpGrid reads it twice. An id is empty or missing where the message could not be sent.
            batch = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            self.out.extend(id_ for id_ in self._grid.push_messages(batch) if id_)

    def replies(self) -> Iterator[Message]:
        """Yield the replies in the order of the messages."""
        try:
            while self.out and self._await(self.out[0]):
                first = self.out.popleft()
                self.refill()
                yield self._here.pop(first)
            if self.out:  # the deadline
                self._pull(self._missing(), 0.0)
            for late in list(self.out):
                if late in self._here:
                    yield self._here.pop(late)
        finally:
            cancel(self._grid, list(self.out))

    def _await(self, first: str) -> bool:
        """Wait until a reply is here; False if there will be none in time."""
        began = now = time.monotonic()
        wanted = [first]  # alone at first: a grid that runs clients when asked then runs only this one
        while first not in self._here and now < self._deadline:
            self._pull(wanted, self._deadline - now)
            if self._wait:
                break
            if first not in self._here:
                time.sleep(min(self._deadline - now, LONGEST_PAUSE, 0.001 + 0.05 * (now - began)))
                wanted = self._missing()
            now = time.monotonic()
        return first in self._here

    def _pull(self, ids: list[str], seconds: float) -> None:
        """Keep the replies that are there, waiting for them where the grid can."""
        if self._wait:
            ids = self._wait(ids, None if seconds == math.inf else seconds)
        for reply in self._grid.pull_messages(ids):
            # An error reply of the SuperLink names its message by this id alone.
            if (id_ := reply.metadata.reply_to_message_id) in ids:
                self._here[id_] = reply

    def _missing(self) -> list[str]:
        return [id_ for id_ in self.out if id_ not in self._here]


class _Watcher(Protocol):
    """What ``Watched`` calls; ``on_reply`` from any thread."""

    def on_messages(self, messages: Iterable[Message]) -> None: ...
    def on_reply(self, reply: Message) -> None: ...
    def on_replies_end(self) -> None: ...


class Watched(Relay):
    """A grid that reports messages that are sent together, each reply, and that no more will come.

    If the ``innermost`` grid is a ``LocalGrid`` or a ``RayGrid``, replies are reported when they are there, else when
    they are returned.
    """

    def __init__(self, grid: Grid, watcher: _Watcher, innermost: Grid) -> None:
        super().__init__(grid)
        self._watcher = watcher
        self._listens = hasattr(innermost, "listen")
        if self._listens:
            cast(Any, innermost).listen(watcher.on_reply)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages, and return their replies as the grid does."""
        messages = list(messages)
        self._watcher.on_messages(messages)
        return self._report(self._grid.send_and_receive(messages, timeout=timeout))

    def _report(self, replies: Iterable[Message]) -> Iterator[Message]:
        try:
            for reply in replies:
                if not self._listens:
                    self._watcher.on_reply(reply)
                yield reply
        finally:
            self._watcher.on_replies_end()
