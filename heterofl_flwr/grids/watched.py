"""``Watched``: any grid, whose replies are counted as they come."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from heterofl_flwr.grids.relay import Relay


class Watcher(Protocol):
    """Who is told what is sent and what is answered."""

    def on_messages(self, messages: Iterable[Message]) -> None:
        """Take note of messages that are sent together."""

    def on_reply(self, reply: Message) -> None:
        """Take note of a reply; may be called from any thread."""

    def on_replies_end(self) -> None:
        """Take note that no more replies to these messages will come."""


class Watched(Relay):
    """A grid that tells of each message sent, and of each reply.

    A ``LocalGrid`` or ``RayGrid`` below tells of replies when they are there, any other when they are handed over.

    Parameters
    ----------
    grid : Grid
        Any grid; it stays the caller's to close.
    watcher : Watcher
        Who is told.
    innermost : Grid
        The grid below all others that ``grid`` is made of.
    """

    def __init__(self, grid: Grid, watcher: Watcher, innermost: Grid) -> None:
        super().__init__(grid)
        self._watcher = watcher
        listen: Callable[[Callable[[Message], None]], None] | None = getattr(innermost, "listen", None)
        self._is_told = listen is not None
        if listen is not None:
            listen(watcher.on_reply)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages, and return their replies as the grid does."""
        messages = list(messages)
        self._watcher.on_messages(messages)
        return self._counted(super().send_and_receive(messages, timeout=timeout))

    def _counted(self, replies: Iterable[Message]) -> Iterator[Message]:
        try:
            for reply in replies:
                if not self._is_told:
                    self._watcher.on_reply(reply)
                yield reply
        finally:
            self._watcher.on_replies_end()
