"""``Relay``, the base of proxies for grids, and protocols of grids."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from heterofl_flwr.transport import compat
from heterofl_flwr.transport.compat import Run


@runtime_checkable
class Waits(Protocol):
    """Protocol of grids that can wait for replies."""

    def wait_for_replies(self, message_ids: Iterable[str], timeout: float | None = None) -> list[str]:
        """Wait at most ``timeout`` seconds until all messages are answered; return the ids of answered messages."""


@runtime_checkable
class Cancels(Protocol):
    """Protocol of grids that can drop messages and their replies."""

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop messages and their replies, including messages on which clients are working."""


@runtime_checkable
class Costs(Protocol):
    """Protocol of grids that count the time and energy of simulated devices."""

    def take_costs(self) -> Mapping[str, float]:
        """Return the costs since the previous call, by names of ``RoundRecord`` fields."""


class Relay(Grid):
    """Proxy for a grid; subclasses override what they change."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    @property
    def run(self) -> Run:
        """The run of the grid."""
        return self._grid.run

    def set_run(self, run: Run) -> None:
        """Set the run of the grid."""
        self._grid.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected nodes."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[compat.NodeInfo]:
        """Return Flower's information about each connected node."""
        return compat.get_nodes(self._grid)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have arrived."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop messages and their replies, if the grid can."""
        cancel(self._grid, list(message_ids))


def crosses_superlink(grid: object) -> bool:
    """Return True if ``grid``, or the grid inside its proxies (``Relay``), is the grid of a SuperLink.

    The clients of a SuperLink may run on other machines.
    """
    while isinstance(grid, Relay):
        grid = grid._grid
    return compat.has_runtime_client(grid)


def cancel(grid: Grid, message_ids: Sequence[str]) -> None:
    """Drop messages and their replies, if the grid can."""
    if message_ids and isinstance(grid, Cancels):
        grid.cancel(message_ids)
