"""``Windowed``, a grid around another one that bounds the number of messages out."""

from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import check_count
from heterofl_flwr.transport.exchange import exchange
from heterofl_flwr.transport.relay import Relay


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
        return exchange(self._grid, messages, window=self._window, timeout=timeout)
