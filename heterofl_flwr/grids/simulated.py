"""``SimulatedDevices``: any grid, with devices on it that are slow, late, or gone."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from flwr.app import Message, MessageType, MetricRecord
from flwr.serverapp import Grid

from heterofl_flwr.grids.devices import Devices, Turn
from heterofl_flwr.transport.compat import make_message
from heterofl_flwr.transport.messages import (
    METRICS,
    NUM_EXAMPLES,
    PARTITION,
    RATE,
    SEED,
    SERVER_ROUND,
    SIMULATED,
    WORK,
    SimulatedFault,
    array_records,
    read_config,
    read_value,
)
from heterofl_flwr.transport.packing import count_bytes
from heterofl_flwr.transport.relay import Relay

AWAY = f"{SIMULATED}not available"
DROPPED_OUT = f"{SIMULATED}dropped out"


@dataclass(slots=True)
class _Flight:
    """A message to a device, and the reply, with how long it takes: known when the client has trained."""

    turn: Turn
    kind: str
    sent: float
    down: int
    takes: float = 0.0
    reply: Message | None = None

    @property
    def arrives(self) -> float:
        """When the reply is there."""
        return self.sent + self.takes


class SimulatedDevices(Relay):
    """Let clients train on simulated devices: some are not available, drop out or are late, and all take time.

    An error stands for the reply of a device that is away, drops out, or takes longer than the deadline. The cost of a
    round is in its ``RoundRecord``. Messages other than those to train pass as they are, and take no time.

    A round that waits for all devices ends with the last reply, dropout or deadline. Its replies come
    in the grid's order, and none is held. For a server that does not wait (``HeteroFL(asynchronous=...)``, ``spare``)
    time passes where replies are pulled: to when the first of those asked for arrives, whatever runs the clients. A
    reply is then held from when its client has trained until it arrives.

    HeteroFL's messages say what it has to know of a client: seed, round, partition and rate. ``Windowed`` goes inside.

    Parameters
    ----------
    grid : Grid
        Any grid of Flower, a ``LocalGrid`` or a ``Windowed``; it stays the caller's to close.
    devices : Devices
        What the devices can do, and the deadline: for how long the server waits for a reply.

    Attributes
    ----------
    seconds : float
        The simulated time since the grid was made.

    Examples
    --------
    >>> strategy.start(SimulatedDevices(Windowed(grid, 64), devices), num_rounds=20)
    """

    def __init__(self, grid: Grid, devices: Devices) -> None:
        super().__init__(grid)
        self._devices = devices
        self._out: dict[str, _Flight] = {}  # of those that nobody waits for, in the order sent
        self.seconds = 0.0
        self._spent = self._joules = 0.0  # since they were last taken

    def take_costs(self) -> dict[str, float]:
        """Return the seconds and joules since the last call, those of lost work included."""
        costs = {"simulated_seconds": self._spent, "joules": self._joules}
        self._spent = self._joules = 0.0
        return costs

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages; return the replies in the grid's order, behind the faults of those that are away."""
        messages = list(messages)
        if not messages or not is_training(messages[0]):
            return super().send_and_receive(messages, timeout=timeout)
        flights = {message.metadata.dst_node_id: self._start(message) for message in messages}
        away = {node for node, flight in flights.items() if self._devices.is_away(flight.turn)}
        faults = [
            Message(SimulatedFault(AWAY), reply_to=message)
            for message in messages
            if message.metadata.dst_node_id in away
        ]
        sent = [message for message in messages if message.metadata.dst_node_id not in away]
        return chain(faults, self._wait_for(flights, super().send_and_receive(sent, timeout=timeout)))

    def _wait_for(self, flights: Mapping[int, _Flight], replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies of a round; its slowest device determines how long it took."""

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
        """Send messages, and note when those to train were."""
        messages = list(messages)
        flights = [self._start(message) if is_training(message) else None for message in messages]
        ids = list(super().push_messages(messages))
        self._out |= {id_: flight for id_, flight in zip(ids, flights, strict=False) if id_ and flight}
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let time pass until the first of these is answered, and return the replies that have arrived by then.

        The result is empty while a client still trains on this machine, because its device might be faster.
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
        """Drop messages and their replies."""
        message_ids = list(message_ids)
        for id_ in message_ids:
            self._out.pop(id_, None)
        super().cancel(message_ids)

    def _start(self, message: Message) -> _Flight:
        """Tell a client which share of its work to do."""
        config = read_config(message)
        seed, server_round, partition = (read_value(config, key, int) for key in (SEED, SERVER_ROUND, PARTITION))
        turn = Turn(seed, server_round, partition, read_value(config, RATE, float))
        if (share := self._devices.step_share(turn)) < 1:
            config[WORK] = share
        return _Flight(turn, message.metadata.message_type, self.seconds, array_bytes(message))

    def _land(self, flight: _Flight, reply: Message) -> Message:
        """Note what a reply took; return it, or the fault of a device that is away, drops out or is late."""
        examples, turn, devices = examples_of(reply), flight.turn, self._devices
        if examples is None:  # the strategy says what is wrong with it
            return reply
        if devices.is_away(turn):
            return make_message(reply.metadata, error=SimulatedFault(AWAY))
        fault, done, up = "", 1.0, array_bytes(reply)
        if devices.drops_out(turn):
            fault, done, up = DROPPED_OUT, turn.progress, 0
        work = devices.work(flight.kind, turn.partition, turn.rate, examples) * devices.step_share(turn) * done
        seconds, joules = devices.costs(turn, work, flight.down, up)
        if seconds > devices.deadline:
            fault = f"{SIMULATED}later than the deadline of {devices.deadline:g} s"
        flight.takes = min(seconds, devices.deadline)
        self._joules += joules
        return make_message(reply.metadata, error=SimulatedFault(fault)) if fault else reply


def is_training(message: Message) -> bool:
    """Whether a message is an instruction to train."""
    return message.metadata.message_type.startswith(MessageType.TRAIN)


def array_bytes(message: Message) -> int:
    """Return the bytes of a message's parameters."""
    return sum(map(count_bytes, array_records(message.content).values()))


def examples_of(reply: Message) -> int | None:
    """Return the number of examples in a reply; None where it is no answer to an instruction to train."""
    metrics = None if reply.has_error() else reply.content.get(METRICS)
    examples = metrics.get(NUM_EXAMPLES) if isinstance(metrics, MetricRecord) else None
    return examples if isinstance(examples, int) and examples >= 0 else None
