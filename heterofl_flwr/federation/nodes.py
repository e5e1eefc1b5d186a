"""The clients of a run: their capabilities, names, and the numbers that stand for them."""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Annotated

from heterofl_flwr.common.errors import RoundError, listed
from heterofl_flwr.common.options import Count, Natural, check, group
from heterofl_flwr.core.levels import exact_rate

logger = logging.getLogger(__name__)

_RateOrNone = Annotated[float | None, check(lambda rate: rate is None or exact_rate(rate)), "a rate"]


@group
class Capability:
    """A client's answer to the capability query, and the server's limit for it."""

    capacity: _RateOrNone = None  # the largest rate that the client can hold
    limit: float = 1.0  # the largest rate that the server allows
    partition: Annotated[Natural | None, "an integer of 0 or more"] = None  # its part of the data
    num_partitions: Annotated[Count | None, "an integer of 1 or more"] = None

    @property
    def holds(self) -> float | None:
        """The largest rate that the client can have, or None if it can have any."""
        if self.capacity is None and self.limit == 1:
            return None
        return self.limit if self.capacity is None else min(self.capacity, self.limit)


class Nodes:
    """Registry of the clients by node id; a client is known once it has answered the capability query.

    The *partition* of a client is the one it reports, if no other client reported it before; random draws use it. The
    *seat* of a client depends on the names and ids of the nodes that are there and never on a report, so that no client
    can change the level of another; ``seat_rates`` has the rates of the seats.

    Attributes
    ----------
    present : set[int]
        The nodes that are there.
    order : list[int]
        The same, sorted by registered name, then by id.
    all_named : bool
        True if each of them has a registered name. Draws then use the names, and only drawn nodes are asked.
    unanswered : set[int]
        Nodes that are there and have not answered the last capability query.
    demoted : set[str]
        Names of nodes without a usable answer, which therefore have the mix's smallest rate.
    changes : list[str]
        Log lines on nodes that joined, left or came back; the caller takes them out.
    away : dict[str, int]
        Names of nodes that left, with the round in which they were missed first.
    """

    def __init__(self, reserved: Iterable[int] = ()) -> None:
        self._reserved = frozenset(reserved)  # partitions that are assigned by name only
        self.present: set[int] = set()
        self._names: dict[int, str] = {}
        self._capabilities: dict[int, Capability] = {}
        self._partitions: dict[int, int] = {}
        self._seats: dict[int, int] = {}
        self._greeted: set[int] = set()  # nodes whose arrival is in ``changes``, or was
        self.order: list[int] = []
        self.all_named = False
        self.unanswered: set[int] = set()
        self.demoted: set[str] = set()
        self.changes: list[str] = []
        self.away: dict[str, int] = {}
        self.seat_rates: dict[int, float] = {}
        self.trained: set[int] = set()  # clients with an aggregated reply
        self.remarks: set[tuple[str, int]] = set()  # remarks on replies that are in the log, with the client
        self.has_new_capacity = False  # a reply has changed what a client can hold
        self._trained_before: set[int] = set()  # their partitions, in the run that is resumed
        self._dealt_before = 0  # ``dealt`` of the run that is resumed
        self._named_before: Mapping[str, int] = {}  # ``named`` of the run that is resumed
        self.own_rates: dict[int, float] = {}  # of clients with private layers, which keep their first rate

    def __contains__(self, node_id: int) -> bool:
        return node_id in self._capabilities

    def __iter__(self) -> Iterator[int]:
        return iter(self._capabilities)

    def __len__(self) -> int:
        return len(self._capabilities)

    def __getitem__(self, node_id: int) -> Capability:
        return self._capabilities[node_id]

    def update(self, present: Collection[int], names: Mapping[int, str], server_round: int = 0) -> bool:
        """Set the nodes that are there, and return whether they are others; ``names`` has those of the newcomers.

        A node that left is forgotten, but its numbers stay its own until another node joins: a node that is started
        anew may have another id.
        """
        if (present := {*present}) == self.present:
            return False
        gone, came = self.present - present, present - self.present
        for node_id in gone:
            self.away.setdefault(self.name(node_id), server_round)
            self.changes.append(f"away: {self.name(node_id)}")
        self.demoted.difference_update(map(self.name, gone))
        self.forget(gone | (self._capabilities.keys() - present))
        self.unanswered -= gone
        self.present = present
        self._names.update((node_id, name) for node_id in came if (name := names.get(node_id)))
        is_first, self.order = not self.order, self._by_name(present)
        if joined := came - self._seats.keys():  # newcomers may get the numbers of nodes that left
            for node_id in self._seats.keys() - present:
                del self._seats[node_id]
                self.seat_rates.pop(node_id, None)
            _number(self._seats, [node_id for node_id in self.order if node_id in joined])
        self._greeted -= gone
        if is_first and not self.away:
            self._greeted |= came & self._names.keys()
        else:
            self._greet(node_id for node_id in came if node_id in self._names)
        self.all_named = self._names.keys() >= present
        if self._named_before:
            there, before, self._named_before = {*self._names.values()}, self._named_before, {}
            self.away |= {name: since or server_round for name, since in before.items() if name not in there}
        return True

    def register(self, answers: Mapping[int, Capability]) -> None:
        """Register the answers of nodes to the capability query.

        A client without a partition of its own gets the number of its seat, or the lowest free one. Seats of nodes
        without registered names follow from random node ids, so such a run cannot be repeated.
        """
        if answers.keys() - self._partitions.keys():  # these may have the numbers of nodes that left
            for node_id in self._partitions.keys() - self.present:
                del self._partitions[node_id]
        self._capabilities.update(answers)
        self.unanswered -= answers.keys()
        self._number_partitions(answers)
        self._greet(answers)
        # Numbers that follow from random ids may have been another client's before.
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
                "nodes have the data in different numbers of parts (%s), so some data are in several of them; let all "
                "name the same num-partitions",
                ", ".join(map(str, sorted(numbers))),
            )
        if (dealt := self.dealt()) and self._dealt_before not in (0, dealt):
            raise RoundError(
                f"the clients have the data in {dealt} parts, and those of the run that is resumed had them in "
                f"{self._dealt_before}: start as many (flwr run . --federation-config 'num-supernodes="
                f"{self._dealt_before}'; on real nodes num-partitions), or begin a new run"
            )

    def _greet(self, node_ids: Iterable[int]) -> None:
        """Note which of these nodes came back, and which joined; others have been noted before."""
        for node_id in node_ids:
            if node_id in self._greeted:
                continue
            self._greeted.add(node_id)
            since = self.away.pop(name := self.name(node_id), None)
            self.changes.append(f"joined: {name}" if since is None else f"back: {name}, away since round {since}")

    def _number_partitions(self, answers: Mapping[int, Capability]) -> None:
        """Assign a partition to each new or returning client."""
        claimed = {partition: node for node, partition in self._partitions.items() if node not in answers}
        unnumbered = []
        for node_id in sorted(answers):
            partition = answers[node_id].partition
            if partition is None or claimed.setdefault(partition, node_id) != node_id:
                if partition is not None:
                    logger.warning(
                        "node %s says partition %s, which node %s has", node_id, partition, claimed[partition]
                    )
                unnumbered.append(node_id)
            else:
                self._partitions[node_id] = partition
        # A returning client gets its number again, unless another client reports it.
        for node_id in unnumbered:
            if node_id in self._partitions and claimed.setdefault(self._partitions[node_id], node_id) != node_id:
                del self._partitions[node_id]
        unnumbered = [node_id for node_id in unnumbered if node_id not in self._partitions]
        if unnamed := sum(node_id not in self._names for node_id in unnumbered):
            logger.warning(
                "%d nodes have no registered name, and reported no partition-id or that of another node: they are "
                "numbered by their random ids, so this run cannot be repeated exactly. A ClientApp that calls "
                "answer_queries reports the partition-id of its node config; give each node its own",
                unnamed,
            )
        if self.all_named:  # not all nodes may have answered yet, so the number must not depend on who has
            taken = {*self._partitions.values(), *self._reserved}
            seats = {node_id: self._seats[node_id] for node_id in unnumbered if self._seats[node_id] not in taken}
            self._partitions.update(seats)
            unnumbered = [node_id for node_id in unnumbered if node_id not in seats]
        _number(self._partitions, self._by_name(unnumbered), self._reserved)

    def forget(self, node_ids: Iterable[int]) -> None:
        """Forget the answers of clients, which are asked again; their numbers stay their own."""
        for node_id in {*node_ids} & self._capabilities.keys():
            del self._capabilities[node_id]
            self.trained.discard(node_id)  # its state may be gone

    def have_trained(self) -> list[int]:
        """Return the partitions of the clients with an aggregated reply, for a checkpoint."""
        return sorted({*self._trained_before, *map(self.partition, self.trained)})

    def named(self) -> dict[str, int]:
        """Return the registered names of nodes with the round since which they are away, or 0, for a checkpoint."""
        return {**dict.fromkeys(self._names.values(), 0), **self.away}

    def load(self, trained: Iterable[int], dealt: int, named: Mapping[str, int]) -> None:
        """Restore ``have_trained``, ``dealt`` and ``named`` of a resumed run; clients are recognised by partition."""
        self._trained_before, self._dealt_before, self._named_before = set(trained), dealt, named

    def set_capacity(self, node_id: int, capacity: float) -> None:
        """Set the capacity that a client reported; it counts from the next round on."""
        self._capabilities[node_id] = replace(self._capabilities[node_id], capacity=capacity)
        self.demoted.discard(self.name(node_id))
        self.has_new_capacity = True

    def partition(self, node_id: int) -> int:
        """Return the number that stands for a client in every random draw."""
        return self._partitions[node_id]

    def seat(self, node_id: int) -> int:
        """Return the number of a client that depends on no report."""
        return self._seats[node_id]

    def name(self, node_id: int) -> str:
        """Return the registered name of a node; without one its partition, or at least its id."""
        partition = self._partitions.get(node_id)
        return self._names.get(node_id) or (f"node {node_id}" if partition is None else f"partition {partition}")

    def registered_name(self, node_id: int) -> str:
        """Return the registered name of a node, or ''."""
        return self._names.get(node_id, "")

    def notes(self) -> tuple[str, ...]:
        """Return remarks on nodes that are missing or train less than they could."""
        away = [f"{name} (since round {since})" for name, since in self.away.items()]
        silent = [self.name(node_id) for node_id in self.unanswered]
        parts = {"away": away, "no answer to the capability query": silent, "at the smallest rate": self.demoted}
        return tuple(f"{what}: {listed(names)}" for what, names in parts.items() if names)

    def most_said(self) -> int:
        """Return the largest number of partitions that a client reports; 0 if none reports any."""
        return max((capability.num_partitions or 0 for capability in self._capabilities.values()), default=0)

    def dealt(self) -> int:
        """Return the number of partitions if all clients report the same one, else 0."""
        numbers = {capability.num_partitions or 0 for capability in self._capabilities.values()}
        return numbers.pop() if len(numbers) == 1 else 0

    def _by_name(self, node_ids: Iterable[int]) -> list[int]:
        # Two sorts, of numbers and of text, are twice as fast as one of pairs.
        return sorted(sorted(node_ids), key=lambda node_id: self._names.get(node_id, ""))


def _number(numbers: dict[int, int], node_ids: Iterable[int], reserved: Iterable[int] = ()) -> None:
    """Assign the lowest free number to each client."""
    taken = {*numbers.values(), *reserved}
    free = (number for number in count() if number not in taken)
    numbers.update(zip(node_ids, free, strict=False))
