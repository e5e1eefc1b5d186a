"""``Relay``: hands all on to another grid, for those that change one thing of it."""

import copy
from collections.abc import Callable, Iterable
from typing import Self

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class Relay(Grid):
    """A grid that is another one, in all that a subclass does not change.

    Parameters
    ----------
    grid : Grid
        Any grid of Flower, or a ``LocalGrid``; it stays the caller's to close.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def over(self, wrapped: Callable[[Grid], Grid]) -> Self:
        """Return the same over what ``wrapped`` makes of its grid: this one, if it leaves that as it is."""
        inner = wrapped(self._grid)
        if inner is self._grid:
            return self
        own = copy.copy(self)
        own._grid = inner
        return own

    @property
    def run(self) -> Run:
        """The run, as the grid has it."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """Set the grid's run."""
        self._grid.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message that the grid creates."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the grid's node ids."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return what the grid knows of its nodes."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, however many."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that the grid has."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages, and return their replies as the grid does."""
        return self._grid.send_and_receive(messages, timeout=timeout)
