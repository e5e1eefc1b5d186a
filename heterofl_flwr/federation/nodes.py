"""The clients: what the server knows of each, and the numbers that each keeps for a run."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Annotated

from heterofl_flwr.common.errors import RoundError
from heterofl_flwr.common.options import Count, Natural, check, group
from heterofl_flwr.core.levels import exact_rate

logger = logging.getLogger(__name__)

_RateOrNone = Annotated[float | None, check(lambda rate: rate is None or exact_rate(rate)), "a rate"]


@group
class Capability:
    """What a client says of itself, or None and 0 where it does not say, and what the server lets it have."""

    capacity: _RateOrNone = None  # the largest rate it can hold
    limit: float = 1.0  # the largest rate that the server gives it, whatever it says
    partition: Annotated[Natural | None, "an integer of 0 or more"] = None  # which part of the data is its own
    num_partitions: Annotated[Count | None, "an integer of 1 or more"] = None

    @property
    def holds(self) -> float | None:
        """The largest rate that it can have, or None if it can have any."""
        if self.capacity is None and self.limit == 1:
            return None
        return self.limit if self.capacity is None else min(self.capacity, self.limit)


class Nodes:
    """The clients by node id, with two numbers that each keeps for a run.

    A client's partition is its own word, where no other has said the same before; random draws go by it. Its seat
    depends on names and on who is there, and never on what anybody says. Levels go by a client's own word or by its
    seat, so that no client can change the level of another; ``seat_rates`` has the rates of the seats.
    """

    def __init__(self, reserved: Iterable[int] = ()) -> None:
        self._reserved = frozenset(reserved)  # partitions that nobody gets by order
        self._known: dict[int, Capability] = {}
        self._partitions: dict[int, int] = {}
        self._seats: dict[int, int] = {}
        self.seat_rates: dict[int, float] = {}
        self.trained: set[int] = set()  # those of which a reply was added
        # Of a run that is resumed, before: the partitions of those, and ``dealt``.
        self._trained_before: set[int] = set()
        self._dealt_before = 0
        self.own_rates: dict[int, float] = {}  # of those with parameters of their own, which keep their first rate

    def __contains__(self, node_id: int) -> bool:
        return node_id in self._known

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __getitem__(self, node_id: int) -> Capability:
        return self._known[node_id]

    def register(
        self,
        answers: Mapping[int, Capability],
        names: Mapping[int, str] | None = None,
        present: Iterable[int] | None = None,
    ) -> None:
        """Register new clients, with what they reported of themselves.

        A client without a partition of its own gets the lowest free number: by registered name where it has one
        (``names``), else by node id. Node ids are random, so such a run cannot be repeated. A known client that is not
        ``present`` is forgotten: a node that was started anew has another id, but the same partition.
        """
        if present is not None:
            self.forget(self._known.keys() - set(present))
            if answers.keys() - self._partitions.keys():  # those that come may have the numbers of those that left
                for node_id in self._partitions.keys() - set(present):
                    del self._partitions[node_id], self._seats[node_id]
                    self.seat_rates.pop(node_id, None)
        self._known.update(answers)
        names = names or {}
        _number(self._seats, _by_name(answers.keys() - self._seats.keys(), names))
        self._number_partitions(answers, names)
        # Numbers that follow from random ids may have been another's before.
        sure = {self._partitions[own]: own for own in answers if answers[own].partition is not None or names.get(own)}
        self.trained |= {own for partition, own in sure.items() if partition in self._trained_before}
        self._trained_before -= sure.keys()
        if len(numbers := {own.num_partitions for own in self._known.values() if own.num_partitions}) > 1:
            logger.warning(
                "nodes have the data in different numbers of parts (%s), so some data are in several of them; let all "
                "name the same num-partitions",
                ", ".join(map(str, sorted(numbers))),
            )
        if (now := self.dealt()) and self._dealt_before not in (0, now):
            raise RoundError(
                f"the clients have the data in {now} parts, and those of the run that is resumed had them in "
                f"{self._dealt_before}: start as many (flwr run . --federation-config 'num-supernodes="
                f"{self._dealt_before}'; on real nodes num-partitions), or begin a new run"
            )

    def _number_partitions(self, answers: Mapping[int, Capability], names: Mapping[int, str]) -> None:
        """Give new clients, and those that are back, a partition each."""
        claimed = {partition: node for node, partition in self._partitions.items() if node not in answers}
        unnumbered = []
        for node_id in sorted(answers):
            wanted = answers[node_id].partition
            if wanted is None or claimed.setdefault(wanted, node_id) != node_id:
                if wanted is not None:
                    logger.warning("node %s says partition %s, which node %s has", node_id, wanted, claimed[wanted])
                unnumbered.append(node_id)
            else:
                self._partitions[node_id] = wanted
        # One that was away has its number again, unless another says it.
        back = [node_id for node_id in unnumbered if node_id in self._partitions]
        for node_id in back:
            if claimed.setdefault(self._partitions[node_id], node_id) != node_id:
                del self._partitions[node_id]
        unnumbered = [node_id for node_id in unnumbered if node_id not in self._partitions]
        if unnamed := sum(not names.get(node_id) for node_id in unnumbered):
            logger.warning(
                "%d nodes name no partition-id of their node config and have no registered name: they are numbered by "
                "their random ids, so this run cannot be repeated exactly",
                unnamed,
            )
        _number(self._partitions, _by_name(unnumbered, names), self._reserved)

    def forget(self, node_ids: Iterable[int]) -> None:
        """Forget what clients that have left said: one that comes back is asked again; its numbers stay its own."""
        for node_id in {*node_ids} & self._known.keys():
            del self._known[node_id]
            self.trained.discard(node_id)  # what it kept may have gone with it

    def have_trained(self) -> list[int]:
        """Return the partitions of the clients of which a reply was added, for a checkpoint."""
        return sorted({*self._trained_before, *map(self.partition, self.trained)})

    def load(self, trained: Iterable[int], dealt: int) -> None:
        """Go on with what ``have_trained`` and ``dealt`` returned: clients are known again by their partitions."""
        self._trained_before, self._dealt_before = set(trained), dealt

    def set_capacity(self, node_id: int, capacity: float) -> None:
        """Note a capacity that a client reported; it counts from the next round on."""
        self._known[node_id] = replace(self._known[node_id], capacity=capacity)

    def partition(self, node_id: int) -> int:
        """Return the number that stands for a client in every random draw."""
        return self._partitions[node_id]

    def seat(self, node_id: int) -> int:
        """Return the number of a client that depends on nobody's word."""
        return self._seats[node_id]

    def most_said(self) -> int:
        """Return the largest number of partitions that a client says there are; 0 if none says any."""
        return max((known.num_partitions or 0 for known in self._known.values()), default=0)

    def dealt(self) -> int:
        """Return of how many parts the clients have one each, as all of them say; 0 if they do not."""
        said = {known.num_partitions or 0 for known in self._known.values()}
        return said.pop() if len(said) == 1 else 0


def _by_name(node_ids: Iterable[int], names: Mapping[int, str]) -> list[int]:
    return sorted(node_ids, key=lambda node_id: (names.get(node_id, ""), node_id))


def _number(numbers: dict[int, int], node_ids: Iterable[int], reserved: Iterable[int] = ()) -> None:
    """Give each of some clients the lowest number that is free."""
    taken = {*numbers.values(), *reserved}
    free = (number for number in count() if number not in taken)
    numbers.update(zip(node_ids, free, strict=False))
