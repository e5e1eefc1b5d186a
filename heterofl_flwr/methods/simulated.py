"""One round on simulated devices: who drops out, who is late, and what it takes."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from heterofl_flwr import messages as wire
from heterofl_flwr.methods.devices import Devices, Turn, reached
from heterofl_flwr.methods.federation import Federation, TrainReply

DROPPED_OUT = "simulated: dropped out"
"""What is wrong with a client whose device was gone before the end of the round."""


class Simulation:
    """The simulated devices of a run, if it has any; without them all clients are there, and do all their work.

    Parameters
    ----------
    devices : Devices | None
        What they can do.
    federation : Federation
        The clients.
    """

    def __init__(self, devices: Devices | None, federation: Federation) -> None:
        self.round: SimulatedRound | None = None
        self._devices = devices
        self._federation = federation

    def present(self, server_round: int, node_ids: Sequence[int], number: int, least: int) -> Sequence[int]:
        """Return which clients can be drawn for a round, ``least`` or more; ``number`` is that of the partitions."""
        if self._devices is None:
            return node_ids
        rates = {node_id: self._federation.rate(server_round, node_id, number) for node_id in node_ids}
        return self._devices.present(self._turns(server_round, rates), least)

    def begin(self, server_round: int, rates: Mapping[int, float], least: int) -> None:
        """Begin a round with these clients and their rates; neither chance nor the deadline leaves fewer than some."""
        if self._devices is not None:
            self.round = SimulatedRound(self._devices, self._turns(server_round, rates), least)

    @property
    def dropped(self) -> Sequence[int]:
        """The clients that drop out of the round: nothing is sent to them, and nothing comes from them."""
        return () if self.round is None else self.round.dropped

    def lost(self, faults: Iterable[str]) -> int:
        """Return how many of the clients that failed did so by chance or by the deadline alone."""
        return 0 if self.round is None else sum(fault in (DROPPED_OUT, self.round.too_late) for fault in faults)

    def told(self, node_id: int) -> dict[str, float]:
        """Return what a client is told of its share of the work, where that is not all."""
        share = 1.0 if self.round is None else self.round.shares[node_id]
        return {wire.WORK: share} if share < 1 else {}

    def send(self, node_id: int, num_bytes: int) -> None:
        """Note how many bytes a client receives."""
        if self.round is not None:
            self.round.send(node_id, num_bytes)

    def take(self, kind: str, node_id: int, reply: TrainReply) -> str | None:
        """Note a reply to a type of message; return what is wrong with one that is late, which the round may hold."""
        if self.round is None or self.round.arrive(kind, node_id, reply.num_examples, reply.num_bytes):
            return None
        self.round.hold(node_id, reply)
        return self.round.too_late

    def _turns(self, server_round: int, rates: Mapping[int, float]) -> dict[int, Turn]:
        seed, partition = self._federation.seed, self._federation.nodes.partition
        return {node_id: Turn(seed, server_round, partition(node_id), rate) for node_id, rate in rates.items()}


class SimulatedRound:
    """What happens on the devices while a round runs.

    A round is one exchange of messages or several, one after the other; the deadline holds for each.

    Parameters
    ----------
    devices : Devices
        What they can do.
    turns : Mapping[int, Turn]
        The round's clients by node.
    least : int
        How many clients stay, and are waited for, whatever chance and the deadline say.
    """

    def __init__(self, devices: Devices, turns: Mapping[int, Turn], least: int) -> None:
        self.seconds = 0.0
        self.shares = {node: devices.share(turn) for node, turn in turns.items()}
        self.dropped = devices.drop_outs(turns, least)
        self.least = least
        self.too_late = f"simulated: later than the deadline of {devices.deadline:g} s"
        self._devices, self._turns = devices, turns
        self._gone = list(self.dropped)  # until an exchange has ended without them
        self._joules: list[float] = []
        self._down: dict[int, int] = {}
        self._examples: dict[int, int] = {}
        self._took: dict[int, float] = {}
        self._held: dict[int, TrainReply] = {}

    @property
    def joules(self) -> float:
        """What all work so far took, that in vain included."""
        return math.fsum(self._joules)

    def send(self, node_id: int, num_bytes: int) -> None:
        """Note how many bytes a client receives in this exchange."""
        self._down[node_id] = num_bytes

    def arrive(self, kind: str, node_id: int, examples: int, num_bytes: int) -> bool:
        """Note a reply to a type of message, from so many examples and of so many bytes; return if it is in time."""
        turn = self._turns[node_id]
        macs = self._devices.work(kind, turn.partition, turn.rate, examples) * self.shares[node_id]
        spent = self._devices.spent(turn, macs, self._down.get(node_id, 0), num_bytes)
        self._took[node_id] = spent.seconds
        self._examples[node_id] = examples
        self._joules.append(spent.joules)
        return not self._is_late(node_id)

    def hold(self, node_id: int, reply: TrainReply) -> None:
        """Keep a late reply for the case that too few come in time; of those held, no more than can be needed."""
        self._held[node_id] = reply
        for node in self._fastest(self._held)[self.least :]:
            del self._held[node]

    def held(self) -> list[tuple[int, TrainReply]]:
        """Return the late replies that are held, in the order in which they come."""
        return [(node, self._held[node]) for node in self._fastest(self._held)]

    def awaited(self, node_ids: Collection[int]) -> list[int]:
        """Return whose replies the server waits for: all that come in time, and late ones where those are too few."""
        in_time = sum(not self._is_late(node) for node in node_ids)
        return self._fastest(node_ids)[: max(in_time, self.least)]

    def end_exchange(self, kind: str, counted: Collection[int]) -> None:
        """End an exchange of a type of message: it lasts as long as the server waits for the replies that count."""
        waits = [self._took[node] for node in counted]
        late = any(self._is_late(node) for node in self._took.keys() - set(counted))
        if math.isfinite(self._devices.deadline) and (self._gone or late):
            waits.append(self._devices.deadline)
        self.seconds += max(waits, default=0.0)
        self._joules += [self._in_vain(kind, node) for node in self._gone]
        self._gone, self._down, self._took = [], {}, {}

    def _is_late(self, node_id: int) -> bool:
        return self._took[node_id] > self._devices.deadline

    def _fastest(self, node_ids: Collection[int]) -> list[int]:
        return sorted(node_ids, key=lambda node: (self._took[node], self._turns[node].partition))

    def _in_vain(self, kind: str, node_id: int) -> float:
        """Return what a client spent that dropped out; nobody knows its examples, so it has the mean of the others'."""
        turn, known = self._turns[node_id], self._examples.values()
        examples = round(sum(known) / len(known)) if known else 0
        macs = self._devices.work(kind, turn.partition, turn.rate, examples) * self.shares[node_id] * reached(turn)
        return self._devices.spent(turn, macs, self._down.get(node_id, 0), 0).joules
