"""``SimulatedDevices``: slow, late and unavailable devices."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count

from flwr.app import Message, MessageType, MetricRecord
from flwr.serverapp import Grid

from heterofl_flwr.grids.device_costs import Devices, Turn
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.arrays import content_bytes
from heterofl_flwr.transport.compat import make_message, set_metadata
from heterofl_flwr.transport.reading import read_config, read_optional, read_value
from heterofl_flwr.transport.relay import Relay

AWAY = f"{messages.SIMULATED}not available"
DROPPED_OUT = f"{messages.SIMULATED}dropped out"


@dataclass(slots=True)
class _Flight:
    """A message on a simulated device.

    ``rate`` is the rate at which the client trains, ``sent`` the simulated time of sending, and ``down`` the message's
    size in bytes. ``takes`` is the simulated seconds from sending to the reply; it is 0 until the client has trained.
    If the device is unavailable, ``reply`` is an error reply from the beginning. Otherwise ``reply`` is None at first.
    For a message that ``push_messages`` sent, ``pull_messages`` sets it after the client has trained; for a message of
    ``send_and_receive`` it stays None.
    """

    turn: Turn
    rate: float
    kind: str
    sent: float
    down: int
    takes: float = 0.0
    reply: Message | None = None

    @property
    def arrives(self) -> float:
        """Simulated time at which the reply arrives."""
        return self.sent + self.takes


class SimulatedDevices(Relay):
    """Proxy for a grid whose clients train on simulated devices.

    A client gives an error reply if its device is unavailable, drops out or misses the deadline. The simulated time
    and energy of a round are in its ``RoundRecord``. Only training is simulated: other messages take no time.

    In simulated time, a device is busy until its reply, its dropout or the deadline. A round without ``spare`` clients
    takes the time of its slowest device. In asynchronous runs and with ``spare`` clients, each pull that returns
    replies advances the simulated time to the first arrival. A client whose device drops out keeps its earlier state.

    Only HeteroFL's messages can be simulated. A ``Windowed`` grid must be inside this proxy (see the example).

    Parameters
    ----------
    grid : Grid
        A grid of Flower, or a ``LocalGrid``, or a ``Windowed``; the caller must close it.
    devices : Devices
        The devices, and the deadline for their replies.

    Attributes
    ----------
    seconds : float
        Simulated time since this object was made.

    Examples
    --------
    >>> strategy.start(SimulatedDevices(Windowed(grid, 64), devices), num_rounds=20)
    """

    def __init__(self, grid: Grid, devices: Devices) -> None:
        super().__init__(grid)
        self._devices = devices
        self._out: dict[str, _Flight] = {}  # training messages sent by push_messages, in the order of sending
        self.seconds = 0.0
        self._numbers = count(1)  # for ids of messages to unavailable devices
        self._spent = self._joules = 0.0  # costs since the previous take_costs

    def take_costs(self) -> dict[str, float]:
        """Return the simulated seconds and joules since the previous call."""
        costs = {"simulated_seconds": self._spent, "joules": self._joules}
        self._spent = self._joules = 0.0
        return costs

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages; return their replies, the error replies of unavailable devices first."""
        messages = list(messages)
        if not messages or not is_training(messages[0]):
            return super().send_and_receive(messages, timeout=timeout)
        flights: dict[int, _Flight] = {}
        faults, sent = list[Message](), list[Message]()
        for message in messages:
            flight = flights[message.metadata.dst_node_id] = self._start(message)
            if flight.reply is None:
                sent.append(message)
            else:
                faults.append(flight.reply)
        return chain(faults, self._wait_for(flights, super().send_and_receive(sent, timeout=timeout)))

    def _wait_for(self, flights: Mapping[int, _Flight], replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies of a round. Then advance the simulated time by the time of the slowest device."""

        def land(reply: Message) -> Message:
            flight = flights.get(reply.metadata.src_node_id)
            return self._land(flight, reply) if flight else reply

        try:
            yield from map(land, replies)  # the consumer alone decides how long a reply lives
        finally:
            longest = max(flight.takes for flight in flights.values())
            self.seconds += longest
            self._spent += longest

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, except training messages to unavailable devices; return the ids of all messages."""
        messages = list(messages)
        flights = [self._start(message) if is_training(message) else None for message in messages]
        away = [flight.reply.metadata.reply_to_message_id if flight and flight.reply else "" for flight in flights]
        sent = iter(super().push_messages([message for message, id_ in zip(messages, away, strict=True) if not id_]))
        ids = [id_ or next(sent, "") for id_ in away]
        self._out |= {id_: flight for id_, flight in zip(ids, flights, strict=True) if id_ and flight}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Advance the simulated time to the first arrival of a reply to these messages; return the arrived replies.

        While the underlying grid still trains a client, return no replies: in simulated time, this client's reply may
        be the first. If none of the messages is for training, return the replies of the underlying grid.
        """
        ids = set(message_ids)
        training = [id_ for id_ in self._out if id_ in ids]
        if not training:
            return super().pull_messages(ids)
        for reply in super().pull_messages([id_ for id_, flight in self._out.items() if flight.reply is None]):
            if flight := self._out.get(reply.metadata.reply_to_message_id):
                flight.reply = self._land(flight, reply)
        if any(flight.reply is None for flight in self._out.values()):
            return []
        now = max(self.seconds, min(self._out[id_].arrives for id_ in training))
        self._spent += now - self.seconds
        self.seconds = now
        due = [self._out.pop(id_) for id_ in training if self._out[id_].arrives <= now]
        due.sort(key=lambda flight: flight.arrives)
        return [flight.reply for flight in due if flight.reply is not None]

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Forget messages and their replies."""
        message_ids = list(message_ids)
        for id_ in message_ids:
            self._out.pop(id_, None)
        super().cancel(message_ids)

    def _start(self, message: Message) -> _Flight:
        """Return a message's ``_Flight``, with an error reply if the device is unavailable.

        If the client runs only a fraction of its steps, write this fraction into the message. If the device drops out,
        write that too: it saves no state.
        """
        config = read_config(message)
        seed, server_round, partition = (
            read_value(config, key, int) for key in (messages.SEED, messages.SERVER_ROUND, messages.PARTITION)
        )
        rate = read_value(config, messages.RATE, float)
        turn = Turn(seed, server_round, partition, read_optional(config, messages.ASSIGNED_RATE, float) or rate)
        if (share := self._devices.step_share(turn)) < 1:
            config[messages.WORK] = share
        if self._devices.drops_out(turn):
            config[messages.DROPS_OUT] = True
        flight = _Flight(turn, rate, message.metadata.message_type, self.seconds, content_bytes(message.content))
        if self._devices.is_away(turn):
            set_metadata(message, message_id=f"away-{next(self._numbers)}")
            flight.reply = Message(messages.LocalFault(AWAY, "unsent"), reply_to=message)
        return flight

    def _land(self, flight: _Flight, reply: Message) -> Message:
        """Set the time that a flight takes, and add its energy to the costs; return the reply.

        If the device drops out or misses the deadline, return an error reply instead. If ``reply`` is itself an error
        reply, or states no valid number of examples, return it unchanged; the flight then takes no time and no energy.
        """
        examples, turn, devices = examples_of(reply), flight.turn, self._devices
        if examples is None:  # an error reply, or a reply that the strategy rejects
            return reply
        fault, done, up = "", 1.0, content_bytes(reply.content)
        if devices.drops_out(turn):
            fault, done, up = DROPPED_OUT, turn.progress, 0
        work = devices.work(flight.kind, turn.partition, flight.rate, examples) * devices.step_share(turn) * done
        seconds, joules = devices.costs(turn, work, flight.down, up)
        if seconds > devices.deadline:
            fault = f"{messages.SIMULATED}later than the deadline of {devices.deadline:g} s"
        flight.takes = min(seconds, devices.deadline)
        self._joules += joules
        return make_message(reply.metadata, error=messages.LocalFault(fault, "simulated")) if fault else reply


def is_training(message: Message) -> bool:
    """Return True if a message tells a client to train."""
    return message.metadata.message_type.startswith(MessageType.TRAIN)


def examples_of(reply: Message) -> int | None:
    """Return the number of examples that a reply states, or None if it states no valid number."""
    metrics = None if reply.has_error() else reply.content.get(messages.METRICS)
    examples = metrics.get(messages.NUM_EXAMPLES) if isinstance(metrics, MetricRecord) else None
    return examples if isinstance(examples, int) and examples >= 0 else None
