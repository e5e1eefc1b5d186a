"""``Windowed``: grid proxy that bounds the number of unanswered messages."""

from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import check_count
from heterofl_flwr.transport.exchange import exchange
from heterofl_flwr.transport.relay import Relay


class Windowed(Relay):
    """Grid proxy that bounds the number of messages in flight, and so the memory for replies.

    ``send_and_receive`` returns a generator of replies in the order of the messages. At most ``window`` messages are
    unanswered, or have a reply that is not yet yielded. So a round with any number of clients needs memory for
    ``window`` replies, if the strategy aggregates replies one by one. More messages are sent when half of the window is
    free, so that a ``LocalGrid`` can group them.

    All other methods are those of ``grid``, which the caller must close. ``push_messages`` is not bounded; rounds with
    spare clients use it.

    Parameters
    ----------
    grid : Grid
        Any grid of Flower, or a ``LocalGrid``.
    window : int
        Maximum number of messages in flight. Use at least twice the number that the grid runs at once, or some workers
        are idle.
    """

    def __init__(self, grid: Grid, window: int) -> None:
        check_count("window", window, 1)
        super().__init__(grid)
        self._window = window

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send the first messages and return a generator of the replies, which sends the other messages.

        After ``timeout`` seconds from this call, missing replies are left out and no more messages are sent. The time
        in which the strategy works on replies counts too.
        """
        return exchange(self._grid, messages, window=self._window, timeout=timeout)
