"""Registry of a run's clients."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from heterofl_flwr.common.errors import RoundError, counted, listed
from heterofl_flwr.federation.capability import Capability
from heterofl_flwr.federation.node_numbers import PartitionNumbers, Seats, by_name
from heterofl_flwr.federation.round_record import RoundRecord

logger = logging.getLogger(__name__)

NO_CAPABILITY = "no answer to the capability query"


class _Restore(NamedTuple):
    """Capacity that counts again if a client that reported a new one fails, and then answers the query as before."""

    queried: float | None  # capacity in the answer to the query
    rate: float  # rate that follows from this answer
    capacity: float | None


class Nodes(Mapping[int, Capability]):
    """Registry of the clients by node id.

    Each client has two numbers. The *partition* seeds its random draws. The *seat* determines the level of a client
    that reports neither partition nor capacity.

    Attributes
    ----------
    seats : Seats
        Seats of the present nodes.
    present : set[int]
        Ids of the nodes in Flower's grid.
    order : list[int]
        ``present``, sorted by registered name, then by id.
    unanswered : set[int]
        Present nodes that did not answer the latest capability query.
    demoted : set[str]
        Names of nodes without a usable answer, which train at the smallest rate.
    changes : list[str]
        Log lines on nodes that joined, left or came back. The caller clears the list.
    away : dict[str, int]
        For each node that left, by name: the first round in which it is away.
    """

    def __init__(self, reserved: Iterable[int] = ()) -> None:
        self.seats, self._partitions = Seats(), PartitionNumbers(reserved)
        self.present: set[int] = set()
        self._names: dict[int, str] = {}
        self._capabilities: dict[int, Capability] = {}
        self._unnamed: set[int] = set()  # present nodes without a registered name
        self._ungreeted: set[int] = set()  # present nodes whose arrival has never been in ``changes``
        self.order: list[int] = []
        self.unanswered: set[int] = set()
        self.demoted: set[str] = set()
        self.changes: list[str] = []
        self.away: dict[str, int] = {}
        self.trained: set[int] = set()  # clients with an aggregated reply
        self.remarks: set[tuple[str, int]] = set()  # (remark, node id) of remarks on replies that were logged
        self.has_new_capacity = False  # True after a reply has changed a client's capacity
        self.failed: set[int] = set()  # nodes that failed in training; they may have been restarted with another level
        self._replied: dict[int, _Restore] = {}  # for each client that reported a capacity in a reply
        self._trained_before: set[int] = set()  # partitions of clients that trained before the run was resumed
        self._dealt_before = 0  # ``dealt()`` of the run that is resumed
        self._named_before: Mapping[str, int] = {}  # ``named()`` of the run that is resumed
        self.own_rates: dict[int, float] = {}  # rates of clients that store parameters or tensors of stages
        # By partition of a sampled client: the latest round whose reply is in a mean; at first the round before it was
        # sampled. A client's state is stored by partition, so this holds for a client that comes back as another node.
        self.counted: dict[int, int] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(self._capabilities)

    def __len__(self) -> int:
        return len(self._capabilities)

    def __getitem__(self, node_id: int) -> Capability:
        return self._capabilities[node_id]

    def __contains__(self, node_id: object) -> bool:  # that of Mapping is slow
        return node_id in self._capabilities

    def update(self, present: Collection[int], names: Mapping[int, str], server_round: int = 0) -> bool:
        """Set the present nodes and the names of new nodes; return True if the set of nodes changed."""
        # New nodes may get partition and seat of a node that left: the same machine may restart under another node id.
        if (present := {*present}) == self.present:
            return False
        gone, came = self.present - present, present - self.present
        for node_id in gone:
            self.away.setdefault(self.name(node_id), server_round)
            self.changes.append(f"away: {self.name(node_id)}")
        self.demoted.difference_update(map(self.name, gone))
        self.forget(gone)
        self.unanswered -= gone
        self.present = present
        self._names.update(names)
        unnamed = came.difference(self._names)
        self._unnamed = self._unnamed - gone | unnamed
        self.order = by_name(present, self._names)
        self.seats.update(self.order, self._names)
        self._ungreeted = self._ungreeted - gone | came
        self._greet(came - unnamed)
        if self._named_before:
            names_now, before, self._named_before = {*self._names.values()}, self._named_before, {}
            self.away |= {name: since or server_round for name, since in before.items() if name not in names_now}
        return True

    def register(self, answers: Mapping[int, Capability], faulty: Collection[int] = ()) -> None:
        """Register the answers to the capability query; ``faulty`` nodes gave no usable answer.

        Raise ``RoundError`` if the number of partitions differs from the number before the run was resumed.
        """
        if not all(node_id in self._partitions for node_id in answers):
            self._partitions.remove_absent(self.present)
        self._capabilities.update(answers)
        for node_id in self._replied.keys() & answers.keys():
            restore = self._replied[node_id]
            if answers[node_id].capacity == restore.queried:  # the node was not restarted with another level
                self._capabilities[node_id] = replace(answers[node_id], capacity=restore.capacity)
            else:
                del self._replied[node_id]
        self.unanswered -= answers.keys()
        earlier = {node_id: self.name(node_id) for node_id in answers}
        self.demoted.difference_update(earlier.values())
        self._partitions.assign(answers, faulty, self._names, self.seats if self.all_named else None)
        self._greet(answers, earlier)
        # In the run that is resumed, a partition that follows from a random node id may have been another client's.
        sure = {
            self._partitions[node_id]: node_id
            for node_id, answer in answers.items()
            if answer.partition is not None or node_id in self._names
        }
        self.trained |= {node_id for partition, node_id in sure.items() if partition in self._trained_before}
        self._trained_before -= sure.keys()
        numbers = {answer.num_partitions for answer in self._capabilities.values() if answer.num_partitions}
        if len(numbers) > 1:
            logger.warning(
                "nodes have the data in different numbers of parts (%s), so some data are in several parts; give all "
                "nodes the same num-partitions",
                ", ".join(map(str, sorted(numbers))),
            )
        if (dealt := self.dealt()) and self._dealt_before not in (0, dealt):
            raise RoundError(
                f"the clients have the data in {counted(dealt, 'part')}, and the clients of the resumed run had them "
                f"in {self._dealt_before}: start {self._dealt_before} nodes (flwr run . --federation-config "
                f"'num-supernodes={self._dealt_before}'; on real nodes num-partitions), or begin a new run"
            )

    def _greet(self, node_ids: Iterable[int], earlier: Mapping[int, str] = {}) -> None:
        for node_id in node_ids:
            if node_id not in self._ungreeted:
                continue
            self._ungreeted.remove(node_id)
            name = self.name(node_id)
            # A node without a registered name may come back with another partition, and so under another name.
            since = [self.away.pop(key) for key in {earlier.get(node_id, name), name} & self.away.keys()]
            self.changes.append(f"back: {name}, away since round {min(since)}" if since else f"joined: {name}")

    def forget(self, node_ids: Iterable[int]) -> None:
        """Delete the capabilities of clients; the clients are queried again, and no longer count as trained."""
        for node_id in node_ids:
            self._capabilities.pop(node_id, None)
            self._replied.pop(node_id, None)
            self.trained.discard(node_id)  # the client's state may be lost

    def forget_failed(self) -> None:
        """Delete the capabilities of nodes that failed in training; the nodes are then queried again."""
        for node_id in self.failed & self._capabilities.keys():
            del self._capabilities[node_id]
        self.failed.clear()

    def have_trained(self) -> list[int]:
        """Return the partitions of all clients that have trained, also before the run was resumed."""
        return sorted({*self._trained_before, *map(self.partition, self.trained)})

    def named(self) -> dict[str, int]:
        """Return a round number by node name.

        For a node that left, this is the first round in which the node is away; for a present node with a registered
        name, 0.
        """
        return {**dict.fromkeys(self._names.values(), 0), **self.away}

    def seated(self) -> dict[str, tuple[int, float]]:
        """Return the seat of each node with a registered name, and the rate of this seat (0 without such rates)."""
        return self.seats.by_name(self._names)

    def load(
        self, trained: Iterable[int], dealt: int, named: Mapping[str, int], seated: Mapping[str, tuple[int, float]]
    ) -> None:
        """Store the results of the methods of these names (and ``have_trained()``) from the run that is resumed."""
        self._trained_before, self._dealt_before, self._named_before = set(trained), dealt, named
        self.seats.load(seated)

    def set_capacity(self, node_id: int, capacity: float, rate: float) -> None:
        """Store the capacity that a client of this rate reported in a reply; the client is no longer ``demoted``.

        If the client fails and then answers the query as before, a capacity below its rate by the query still counts.
        """
        queried = self._capabilities[node_id].capacity
        restore = self._replied.get(node_id, _Restore(queried, rate, queried))
        self._replied[node_id] = restore._replace(capacity=capacity if capacity < restore.rate else restore.queried)
        self._capabilities[node_id] = replace(self._capabilities[node_id], capacity=capacity)
        self.demoted.discard(self.name(node_id))
        self.has_new_capacity = True

    @property
    def all_named(self) -> bool:
        """Whether all present nodes have registered names."""
        return bool(self.present) and not self._unnamed

    def partition(self, node_id: int) -> int:
        """Return the partition of a client, which seeds its random draws."""
        return self._partitions[node_id]

    def name(self, node_id: int) -> str:
        """Return the registered name of a node, or else ``partition N`` or ``node ID``."""
        partition = self._partitions.get(node_id)
        return self._names.get(node_id) or (f"node {node_id}" if partition is None else f"partition {partition}")

    def registered_name(self, node_id: int) -> str:
        """Return the registered name of a node; '' if it has none."""
        return self._names.get(node_id, "")

    def record_failure(self, node_id: int, reason: str, failures: dict[int, str], names: dict[int, str]) -> int:
        """Store ``reason`` in ``failures``, by partition; return the partition.

        Also store the node's name in ``names`` if it is registered, or if the node's own partition is not known.
        """
        partition, name = self.partition(node_id), self.name(node_id)
        failures[partition] = reason
        if name != f"partition {partition}":
            names[partition] = name
        return partition

    def are_away(self) -> list[str]:
        """Return a text for each node that left, such as ``phone (since round 3)``."""
        away = {name: since for name, since in self._named_before.items() if name not in self._names.values()}
        return [f"{name} (since round {since})" if since else name for name, since in {**away, **self.away}.items()]

    def notes(self) -> tuple[str, ...]:
        """Return remarks on nodes that are away, silent, or ``demoted`` (at the smallest rate)."""
        away = self.are_away()
        silent = [self.name(node_id) for node_id in self.unanswered]
        parts = {"away": away, NO_CAPABILITY: silent, "at the smallest rate": self.demoted}
        return tuple(f"{what}: {listed(names)}" for what, names in parts.items() if names)

    def note_in(self, record: RoundRecord, before: Collection[str] = ()) -> None:
        """Record which nodes are away or silent, and add ``notes()`` to the notes of ``record``.

        ``before`` holds earlier notes, which are removed from ``record``.
        """
        record.away, record.unanswered = dict(self.away), tuple(map(self.name, self.unanswered))
        record.notes = (*self.notes(), *(note for note in record.notes if note not in before))

    def most_said(self) -> int:
        """Return the largest ``num_partitions`` that a client reports; 0 if none does."""
        return max((capability.num_partitions or 0 for capability in self._capabilities.values()), default=0)

    def dealt(self) -> int:
        """Return the ``num_partitions`` that all clients report; 0 unless they all report the same number."""
        numbers = {capability.num_partitions or 0 for capability in self._capabilities.values()}
        return numbers.pop() if len(numbers) == 1 else 0
