"""``Windowed``, a grid that limits the number of unanswered messages."""

from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import check_count
from heterofl_flwr.transport.exchange import exchange
from heterofl_flwr.transport.relay import Relay


class Windowed(Relay):
    """Proxy that limits the number of a grid's messages in flight, and so the memory for replies.

    A message is in flight until ``send_and_receive`` yields its reply. Replies are in the order of the messages. When
    half of the window is free, new messages fill it at once, so that a ``LocalGrid`` can group them.

    Close ``grid`` yourself. Messages sent by ``push_messages``, as in rounds with spare clients, are not limited.

    Parameters
    ----------
    grid : Grid
        Any grid of Flower, or a ``LocalGrid``.
    window : int
        Maximum number of messages in flight. If it is less than twice the number of clients that run at the same
        time, some workers are idle.
    """

    def __init__(self, grid: Grid, window: int) -> None:
        check_count("window", window, 1)
        super().__init__(grid)
        self._window = window

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send the first messages, and return a generator that yields replies and sends the other messages.

        Replies that arrive later than ``timeout`` seconds after this call are left out. The time in which the strategy
        processes replies counts too.
        """
        return exchange(self._grid, messages, window=self._window, timeout=timeout)
