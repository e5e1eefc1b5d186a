"""``SimulatedDevices``: any grid, with devices on it that are slow, late, or gone."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from flwr.app import Message, MessageType, MetricRecord
from flwr.serverapp import Grid

from heterofl_flwr.compat import make_message
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.exchange import Relay
from heterofl_flwr.federation.nodes import MinReplies, Sampling, least_replies
from heterofl_flwr.grids.devices import Devices, Turn
from heterofl_flwr.messages import (
    METRICS,
    NUM_EXAMPLES,
    PARTITION,
    RATE,
    SEED,
    SERVER_ROUND,
    SIMULATED,
    TRAIN_LEARN,
    WORK,
    SimulatedFault,
    array_records,
    read_config,
    read_value,
)
from heterofl_flwr.packing import count_bytes

AWAY = f"{SIMULATED}not available"
DROPPED_OUT = f"{SIMULATED}dropped out"


class SimulatedDevices(Relay):
    """Let clients train on simulated devices: some are not available, drop out or are late, and all take time.

    An error stands for the reply of a client that is away, drops out or is late; no message reaches one that is not
    available or drops out. The others get their share of the work. The cost of a round is in its
    ``RoundRecord``. Messages other than those to train pass as they are.

    HeteroFL's messages say what it has to know of a client: seed, round, partition and rate. It has to see all messages
    of a round at once, so it goes around a ``Windowed``, and not into one.

    Parameters
    ----------
    grid : Grid
        Any grid of Flower, a ``LocalGrid`` or a ``Windowed``; it stays the caller's to close.
    devices : Devices
        What the devices can do, and the deadline.
    min_replies : int | float | "auto"
        How many clients stay in a round after all draws and late replies: give a number or a share here, too, if
        the strategy has one. ``auto`` leaves one, as the strategy then does not ask for what devices lose.

    Examples
    --------
    >>> strategy.start(SimulatedDevices(Windowed(grid, 64), devices), num_rounds=20)
    """

    def __init__(self, grid: Grid, devices: Devices, *, min_replies: MinReplies = "auto") -> None:
        super().__init__(grid)
        self._devices = devices
        self._min_replies = Sampling(min_replies=min_replies).min_replies
        self._exchanges: list[_Exchange] = []  # of the last round

    def take_costs(self) -> dict[str, float]:
        """Return the seconds and joules of the last round on its devices, those of lost work included; only once."""
        exchanges, self._exchanges = self._exchanges, []
        return {
            "simulated_seconds": sum(exchange.seconds for exchange in exchanges),
            "joules": math.fsum(chain.from_iterable(exchange.joules for exchange in exchanges)),
        }

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages other than those to train."""
        messages = list(messages)
        if any(map(is_training, messages)):
            raise ConfigError(
                "simulated devices have to see all messages of a round at once, and these were pushed: put Windowed "
                "inside, as in SimulatedDevices(Windowed(grid, 64), devices), take SimulatedArrivals where a server "
                "does not wait for all (spare, asynchronous), and heterofl_flwr.HeteroFL rather than the classic API"
            )
        return super().push_messages(messages)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages; return the replies in the grid's order, behind the faults of those that get no message."""
        messages = list(messages)
        if not messages or not is_training(messages[0]):
            return super().send_and_receive(messages, timeout=timeout)
        before = self._exchanges if messages[0].metadata.message_type == TRAIN_LEARN else []
        least = 1 if self._min_replies == "auto" else least_replies(self._min_replies, len(messages))
        exchange = _Exchange(self._devices, messages, before[0].least if before else least)
        self._exchanges = [*before, exchange]
        lost = {} if before else exchange.draw_losses()
        faults, sent = [], []
        for message in messages:
            node = message.metadata.dst_node_id
            if fault := lost.get(node):
                faults.append(Message(SimulatedFault(fault), reply_to=message))
                continue
            set_work(message, self._devices.step_share(exchange.turns[node]))
            sent.append(message)
        return chain(faults, exchange.replies(super().send_and_receive(sent, timeout=timeout)))


class _Exchange:
    """Instructions of one type and the replies to them; a round has one exchange or several, one after the other.

    At least ``least`` clients stay in it, whatever is drawn and whoever is late.
    """

    def __init__(self, devices: Devices, messages: Sequence[Message], least: int) -> None:
        self.least = least
        self._devices = devices
        self._kind = messages[0].metadata.message_type
        self.turns: dict[int, Turn] = {}  # by node
        for message in messages:
            self.turns[message.metadata.dst_node_id] = read_turn(message)
        self._down = {message.metadata.dst_node_id: array_bytes(message) for message in messages}
        self._dropped: list[int] = []
        self._examples: list[int] = []
        self._joules: list[float] = []
        self._in_time: list[float] = []
        self._late: list[tuple[float, int, int]] = []  # seconds, partition and node of late ones that may be needed
        self._rejected = False

    @property
    def seconds(self) -> float:
        """How long the server waits: for the replies that count, or until the deadline where others do not come."""
        waits = [*self._in_time, *(seconds for seconds, _, _ in self._late)]
        if math.isfinite(self._devices.deadline) and (self._dropped or self._rejected):
            waits.append(self._devices.deadline)
        return max(waits, default=0.0)

    @property
    def joules(self) -> list[float]:
        """What each device spent. Of one that drops out nobody knows the examples, so it has the others' mean."""
        examples = round(sum(self._examples) / len(self._examples)) if self._examples else 0
        lost = (self._costs(node, examples, 0, self.turns[node].progress)[1] for node in self._dropped)
        return [*self._joules, *lost]

    def draw_losses(self) -> dict[int, str]:
        """Draw which clients get no message in this round; return why, by node."""
        there = self._devices.present(self.turns, self.least)
        self._dropped = self._devices.drop_outs({node: self.turns[node] for node in there}, self.least)
        return dict.fromkeys(self.turns.keys() - set(there), AWAY) | dict.fromkeys(self._dropped, DROPPED_OUT)

    def replies(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield replies in their order; late ones become errors, but for the fastest where too few come in time.

        A reply is held back only behind a late one that may still be needed, so no more than ``least`` are held whole.
        """
        waiting: list[Message] = []
        for reply in replies:
            rejected = self._note(reply)
            waiting.append(reply)
            del reply  # the consumer alone decides how long a reply lives
            if rejected:
                fault = SimulatedFault(late(self._devices))
                waiting = [
                    make_message(own.metadata, error=fault) if own.metadata.src_node_id in rejected else own
                    for own in waiting
                ]
            undecided = {node for _, _, node in self._late}
            while waiting and waiting[0].metadata.src_node_id not in undecided:
                yield waiting.pop(0)
        while waiting:
            yield waiting.pop(0)

    def _note(self, reply: Message) -> set[int]:
        """Note what a reply took; return the nodes whose late replies are now known not to be needed."""
        node, examples = reply.metadata.src_node_id, examples_of(reply)
        if examples is None or node not in self.turns:  # the strategy says what is wrong with it
            return set()
        seconds, joules = self._costs(node, examples, array_bytes(reply))
        self._examples.append(examples)
        self._joules.append(joules)
        if seconds > self._devices.deadline:
            self._late = sorted([*self._late, (seconds, self.turns[node].partition, node)])
        else:
            self._in_time.append(seconds)
        needed = max(self.least - len(self._in_time), 0)
        rejected, self._late = self._late[needed:], self._late[:needed]
        self._rejected = self._rejected or bool(rejected)
        return {node for _, _, node in rejected}

    def _costs(self, node: int, examples: int, up: int, done: float = 1.0) -> tuple[float, float]:
        """Return the seconds and joules of a device for its share of the work, or for the part that it has done."""
        turn = self.turns[node]
        macs = self._devices.work(self._kind, turn.partition, turn.rate, examples)
        return self._devices.costs(turn, macs * self._devices.step_share(turn) * done, self._down[node], up)


def late(devices: Devices) -> str:
    """Return the fault of a reply that comes after the deadline."""
    return f"{SIMULATED}later than the deadline of {devices.deadline:g} s"


def read_turn(message: Message) -> Turn:
    """Return which part in which round an instruction is about."""
    config = read_config(message)
    seed, server_round, partition = (read_value(config, key, int) for key in (SEED, SERVER_ROUND, PARTITION))
    return Turn(seed, server_round, partition, read_value(config, RATE, float))


def set_work(message: Message, share: float) -> None:
    """Say in an instruction which share of its steps the client is to run."""
    if share < 1:
        read_config(message)[WORK] = share


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
