"""``SimulatedArrivals``: any grid, with devices on it whose replies arrive in the order of the devices' own time."""

from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from heterofl_flwr.compat import make_message
from heterofl_flwr.exchange import Relay, exchange
from heterofl_flwr.grids.devices import Devices, Turn
from heterofl_flwr.grids.simulated import (
    AWAY,
    DROPPED_OUT,
    array_bytes,
    examples_of,
    is_training,
    late,
    read_turn,
    set_work,
)
from heterofl_flwr.messages import SimulatedFault


@dataclass(slots=True)
class _Flight:
    """A message to a device, and the reply, with when it arrives: known when the client has trained."""

    turn: Turn
    kind: str
    sent: float
    down: int
    arrives: float = 0.0
    reply: Message | None = None


class SimulatedArrivals(Relay):
    """Let replies of simulated devices arrive one by one, each when its device would have sent it.

    For a server that does not wait for all: ``HeteroFL(asynchronous=...)`` or ``spare``. Time passes where replies are
    pulled: to when the first of those asked for arrives. Which this is follows from the seed, whatever runs the
    clients, so a run can be repeated. An error stands for the reply of a device that is away, drops out, or takes
    longer than the deadline; its client trains on this machine all the same. Messages other than those to train pass as
    they are, and take no time.

    A reply is held from when its client has trained until it arrives, so this holds as many as there are messages out.

    Parameters
    ----------
    grid : Grid
        Any grid of Flower or a ``LocalGrid``; it stays the caller's to close.
    devices : Devices
        What the devices can do, and the deadline: for how long the server waits for a reply.

    Attributes
    ----------
    seconds : float
        The simulated time since the grid was made.

    Examples
    --------
    >>> strategy = HeteroFL(build, asynchronous=Buffered(size=10, concurrency=50))
    >>> strategy.start(SimulatedArrivals(grid, devices), num_rounds=20)
    """

    def __init__(self, grid: Grid, devices: Devices) -> None:
        super().__init__(grid)
        self._devices = devices
        self._out: dict[str, _Flight] = {}  # in the order sent
        self.seconds, self._joules = 0.0, 0.0
        self._taken = 0.0, 0.0

    def take_costs(self) -> dict[str, float]:
        """Return the seconds and joules since the last call, those of lost work included."""
        (seconds, joules), self._taken = self._taken, (self.seconds, self._joules)
        return {"simulated_seconds": self.seconds - seconds, "joules": self._joules - joules}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and note when those to train were."""
        messages = list(messages)
        flights = [self._start(message) if is_training(message) else None for message in messages]
        ids = list(super().push_messages(messages))
        self._out |= {id_: flight for id_, flight in zip(ids, flights, strict=False) if id_ and flight}
        return ids

    def _start(self, message: Message) -> _Flight:
        """Tell a client which share of its work to do."""
        turn = read_turn(message)
        set_work(message, self._devices.step_share(turn))
        return _Flight(turn, message.metadata.message_type, self.seconds, array_bytes(message))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let time pass until the first of these is answered, and return the replies that have arrived by then.

        Nothing is returned as long as some client still trains on this machine: its device might be faster.
        """
        ids = set(message_ids)
        asked = [id_ for id_ in self._out if id_ in ids]
        if not asked:
            return super().pull_messages(ids)
        for reply in super().pull_messages([id_ for id_, flight in self._out.items() if flight.reply is None]):
            if flight := self._out.get(reply.metadata.reply_to_message_id):
                self._land(flight, reply)
        if any(flight.reply is None for flight in self._out.values()):
            return []
        self.seconds = max(self.seconds, min(self._out[id_].arrives for id_ in asked))
        due = [self._out.pop(id_) for id_ in asked if self._out[id_].arrives <= self.seconds]
        due.sort(key=lambda flight: flight.arrives)
        return [flight.reply for flight in due if flight.reply is not None]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies as they arrive."""
        return exchange(self, messages, timeout=timeout, in_order=False)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Drop messages and their replies."""
        message_ids = list(message_ids)
        for id_ in message_ids:
            self._out.pop(id_, None)
        super().cancel(message_ids)

    def _land(self, flight: _Flight, reply: Message) -> None:
        """Note a reply, and when it arrives; a device that is away, drops out or is late has none that can be used."""
        examples, turn, devices = examples_of(reply), flight.turn, self._devices
        flight.arrives, flight.reply = flight.sent, reply
        if examples is None:  # the strategy says what is wrong with it
            return
        fault, done, down, up = "", 1.0, flight.down, array_bytes(reply)
        if not devices.present({0: turn}, 0):
            fault, done, down, up = AWAY, 0.0, 0, 0
        elif devices.drop_outs({0: turn}, 0):
            fault, done, up = DROPPED_OUT, turn.progress, 0
        work = devices.work(flight.kind, turn.partition, turn.rate, examples) * devices.step_share(turn) * done
        seconds, joules = devices.costs(turn, work, down, up)
        fault = late(devices) if seconds > devices.deadline else fault
        flight.arrives += min(seconds, devices.deadline)
        self._joules += joules
        if fault:
            flight.reply = make_message(reply.metadata, error=SimulatedFault(fault))
