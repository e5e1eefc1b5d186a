"""The two numbers of a node: its partition seeds its random draws, its seat determines its level."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count, filterfalse

from heterofl_flwr.common.errors import counted, listed
from heterofl_flwr.federation.capability import Capability

logger = logging.getLogger(__name__)


def by_name(node_ids: Iterable[int], names: Mapping[int, str]) -> list[int]:
    """Return node ids, sorted by registered name, then by id."""
    # Two sorts, of numbers and of text, are twice as fast as one of pairs.
    return sorted(sorted(node_ids), key=lambda node_id: names.get(node_id, ""))


class Seats:
    """Seats of nodes: the lowest free numbers, in the order of names and ids.

    A node keeps its seat until it has left and another node joins. Seats depend on the names and ids of the nodes
    alone. Therefore no answer of a client changes the level of another client.

    Attributes
    ----------
    rates : dict[int, float]
        Rates of the seats, by node id. The caller sets them.
    """

    def __init__(self) -> None:
        self.rates: dict[int, float] = {}
        self._seats: dict[int, int] = {}
        self._before: dict[str, tuple[int, float]] = {}  # of the run that is resumed, for nodes that have not come yet

    def __getitem__(self, node_id: int) -> int:
        return self._seats[node_id]

    def update(self, order: Sequence[int], names: Mapping[int, str]) -> None:
        """Give seats to the new nodes in ``order``, the present nodes in the order of their names."""
        joined = [node_id for node_id in order if node_id not in self._seats]
        if not joined:
            return
        for node_id in self._seats.keys() - {*order}:  # new nodes may get the seats of nodes that left
            del self._seats[node_id]
            self.rates.pop(node_id, None)
        taken = {*self._seats.values()}
        for node_id in joined if self._before else ():
            seat, rate = self._before.pop(names.get(node_id, ""), (None, 0.0))
            if seat is not None and seat not in taken:
                self._seats[node_id], self.rates[node_id] = seat, rate
        _number(self._seats, [node_id for node_id in joined if node_id not in self._seats])

    def by_name(self, names: Mapping[int, str]) -> dict[str, tuple[int, float]]:
        """Return the seat of each node with a registered name, and the rate of this seat (0 without such rates)."""
        named = {node_id: seat for node_id, seat in self._seats.items() if node_id in names}
        seats = {names[node_id]: (seat, self.rates.get(node_id, 0.0)) for node_id, seat in named.items()}
        return {**self._before, **seats}

    def load(self, seats: Mapping[str, tuple[int, float]]) -> None:
        """Store the result of ``by_name`` from the run that is resumed."""
        self._before = dict(seats)


class PartitionNumbers:
    """Partitions of nodes: the partition that a node reports, or else a free number.

    A client that reports no partition, or the partition of another client, gets a free number: its seat if all nodes
    have names and the seat is free, else the lowest free number. Without names, the number follows from random node
    ids, and the run cannot be repeated exactly.
    """

    def __init__(self, reserved: Iterable[int] = ()) -> None:
        self._reserved = frozenset(reserved)  # partitions in ``Limits.partitions``: no other node gets them
        self._numbers: dict[int, int] = {}
        self._faulty: set[int] = set()  # nodes without a usable answer; their own partition is not known

    def __getitem__(self, node_id: int) -> int:
        return self._numbers[node_id]

    def __contains__(self, node_id: int) -> bool:
        return node_id in self._numbers

    def get(self, node_id: int) -> int | None:
        """Return the partition of a node; None if it has none, or gave no usable answer."""
        return None if node_id in self._faulty else self._numbers.get(node_id)

    def remove_absent(self, present: Collection[int]) -> None:
        """Remove the nodes that are not ``present``; new nodes may get their numbers."""
        for node_id in self._numbers.keys() - present:
            del self._numbers[node_id]

    def assign(
        self,
        answers: Mapping[int, Capability],
        faulty: Collection[int],
        names: Mapping[int, str],
        seats: Seats | None,
    ) -> None:
        """Assign partitions to the nodes in ``answers``; those in ``faulty`` gave no usable answer.

        ``seats`` is None unless all present nodes have registered names.
        """
        self._faulty.difference_update(answers)
        self._faulty.update(node_id for node_id in faulty if answers[node_id].partition is None)
        unnumbered = self._take_reported(answers, names)
        # The fault of a faulty node is reported elsewhere, and may be the reason why it has no partition.
        unnamed = [node_id for node_id in unnumbered if node_id not in names and node_id not in faulty]
        if seats is not None:  # the number must not depend on which nodes have answered before
            taken = {*self._numbers.values(), *self._reserved}
            free = {node_id: seats[node_id] for node_id in unnumbered if seats[node_id] not in taken}
            self._numbers.update(free)
            unnumbered = [node_id for node_id in unnumbered if node_id not in free]
        _number(self._numbers, by_name(unnumbered, names), self._reserved)
        if unnamed:
            logger.warning(
                "%s without a registered name, and with no partition-id or that of another node, got partitions by "
                "random node id (%s): this run cannot be repeated exactly. A ClientApp that calls answer_queries "
                "reports the partition-id of its node config; give each node its own partition-id",
                counted(len(unnamed), "node"),
                listed(f"node {node_id}: partition {self._numbers[node_id]}" for node_id in unnamed),
            )

    def _take_reported(self, answers: Mapping[int, Capability], names: Mapping[int, str]) -> list[int]:
        """Assign the partitions that nodes report; return the nodes that have none yet."""
        claimed = {partition: node for node, partition in self._numbers.items() if node not in answers}
        unnumbered = []
        for node_id in sorted(answers):
            partition = answers[node_id].partition
            if partition is None or claimed.setdefault(partition, node_id) != node_id:
                if partition is not None:
                    both = [names.get(number) or f"node {number}" for number in (node_id, claimed[partition])]
                    logger.warning("%s says partition %s, which %s has", both[0], partition, both[1])
                unnumbered.append(node_id)
            else:
                self._numbers[node_id] = partition
        # A returning client gets its earlier partition again, unless another client reports it.
        for node_id in unnumbered:
            if node_id in self._numbers and claimed.setdefault(self._numbers[node_id], node_id) != node_id:
                del self._numbers[node_id]
        return [node_id for node_id in unnumbered if node_id not in self._numbers]


def _number(numbers: dict[int, int], node_ids: Iterable[int], reserved: Iterable[int] = ()) -> None:
    """Add each node to ``numbers``, with the lowest number that is neither taken nor ``reserved``."""
    taken = {*numbers.values(), *reserved}
    numbers.update(zip(node_ids, filterfalse(taken.__contains__, count()) if taken else count(), strict=False))
