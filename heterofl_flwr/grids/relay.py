"""``Relay``: the base of grids around other grids."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from flwr.serverapp import Grid

from heterofl_flwr import compat
from heterofl_flwr.compat import Run
from heterofl_flwr.exchange import cancel

Method = TypeVar("Method", bound=Callable[..., Any])


def _forward(method: Method) -> Method:
    """Return a method that calls the other grid's."""

    @functools.wraps(method, updated=())  # without what marks it as abstract
    def call(self: "Relay", *args: Any, **kwargs: Any) -> Any:
        return getattr(self._grid, method.__name__)(*args, **kwargs)

    return cast(Method, call)


class Relay(Grid):
    """A grid that is another one, in all that a subclass does not change; the other stays the caller's to close."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    @property
    def run(self) -> Run:
        """The run, as the grid has it."""
        return self._grid.run

    set_run = _forward(Grid.set_run)
    create_message = _forward(Grid.create_message)
    get_node_ids = _forward(Grid.get_node_ids)

    def get_nodes(self) -> Iterable[compat.NodeInfo]:
        """Return what is known of each node."""
        return compat.get_nodes(self._grid)

    push_messages = _forward(Grid.push_messages)
    pull_messages = _forward(Grid.pull_messages)
    send_and_receive = _forward(Grid.send_and_receive)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop messages and their replies, if the grid can."""
        cancel(self._grid, list(message_ids))
