"""The clients: what the server knows of each, which levels they may have, and which of them take part in a round."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import count
from typing import Annotated, Literal

from pydantic import Field, Strict

from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.core.randomness import generator
from heterofl_flwr.groups import Count, Natural, NotNegative, Share, ShareOrNone, check, group

logger = logging.getLogger(__name__)

Purpose = Literal["train", "evaluate"]

MinReplies = Count | Annotated[float, Strict(), Field(gt=0, lt=1)] | Literal["auto"]
"""How many good replies a round needs: a number, a share of the clients that are needed, or half of them."""

REPLIES = "a whole number of 1 or more, or a share between 0 and 1"
"""What is expected beside ``auto``."""

_RateOrNone = Annotated[float | None, check(lambda rate: rate is None or exact_rate(rate)), "a rate"]
_Fewest = Annotated[Natural | None, "an integer of 0 or more"]


@group
class Sampling:
    """Which clients take part in a round, and how long a round waits for them."""

    fraction_train: Share = Field(default=1.0, alias="fraction")
    """share of the clients that train in a round, rounded up"""
    fraction_evaluate: ShareOrNone = Field(default=1.0, exclude=True)
    min_train_nodes: _Fewest = Field(default=None, exclude=True)
    min_evaluate_nodes: _Fewest = Field(default=None, exclude=True)
    min_available_nodes: Natural = Field(default=2, alias="min-nodes")
    """nodes that each round waits for, sample.wait seconds at most; 'heterofl run' waits for all"""
    spare: NotNegative = 0.0
    """share of clients that are asked to train beyond those that are needed; a round ends as soon as enough have
    answered, so which of them count is no longer the same in each run, and engine.window does not hold
    """
    min_replies: Annotated[MinReplies, f"'auto', {REPLIES}"] = "auto"
    """good replies below which a round, and with it the run, fails: a number, a share of the clients that it needs, or
    half of them (auto)
    """
    wait: Annotated[float, Strict(), Field(ge=0, allow_inf_nan=True)] = 60.0
    """seconds to wait for sample.min-nodes before the run fails"""

    @property
    def available(self) -> int:
        """How many nodes a round waits for."""
        return max(self.min_available_nodes, self.min_train_nodes or 0, self.min_evaluate_nodes or 0, 1)

    def number(self, clients: int, purpose: Purpose) -> int:
        """Return how many of some clients take part, rounded up; with a least number rounded down, as in ``FedAvg``."""
        share, least = self.fraction_train, self.min_train_nodes
        if purpose == "evaluate":
            share, least = self.fraction_evaluate, self.min_evaluate_nodes
        if least is not None:
            return max(int(clients * share), least, 1)
        return max(math.ceil(Fraction(str(share)) * clients), 1)

    def with_spare(self, number: int) -> int:
        """Return how many clients are asked to train where this many are needed."""
        return number + math.ceil(Fraction(str(self.spare)) * number)


def least_replies(least: MinReplies, needed: int) -> int:
    """Return how many good replies a round needs, of which this many would be all."""
    if isinstance(least, int):
        return least
    share = Fraction(1, 2) if least == "auto" else Fraction(str(least))
    return max(math.ceil(share * needed), 1)


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
            for node_id in self._known.keys() - set(present):
                del self._known[node_id], self._partitions[node_id], self._seats[node_id]
                self.seat_rates.pop(node_id, None)
                self.trained.discard(node_id)  # what it kept may have gone with it
        self._known.update(answers)
        names = names or {}
        _number(self._seats, _by_name(answers, names))
        claimed = {partition: node for node, partition in self._partitions.items()}
        unnumbered = []
        for node_id in sorted(answers):
            wanted = answers[node_id].partition
            if wanted is None or claimed.setdefault(wanted, node_id) != node_id:
                if wanted is not None:
                    logger.warning("node %s says partition %s, which node %s has", node_id, wanted, claimed[wanted])
                unnumbered.append(node_id)
            else:
                self._partitions[node_id] = wanted
        if unnamed := sum(not names.get(node_id) for node_id in unnumbered):
            logger.warning(
                "%d nodes name no partition-id of their node config and have no registered name: they are numbered by "
                "their random ids, so this run cannot be repeated exactly",
                unnamed,
            )
        _number(self._partitions, _by_name(unnumbered, names), self._reserved)

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

    def sample(self, node_ids: Iterable[int], number: int, *purpose: int | str, seed: int) -> list[int]:
        """Return that many of the clients, drawn by partition so that the draw can be repeated, in its order."""
        by_partition = {self._partitions[node_id]: node_id for node_id in node_ids}
        if number >= len(by_partition):
            return [by_partition[partition] for partition in sorted(by_partition)]
        drawn = generator(seed, "sample", *purpose).sample(sorted(by_partition), number)
        return [by_partition[partition] for partition in drawn]


def _by_name(node_ids: Iterable[int], names: Mapping[int, str]) -> list[int]:
    return sorted(node_ids, key=lambda node_id: (names.get(node_id, ""), node_id))


def _number(numbers: dict[int, int], node_ids: Iterable[int], reserved: Iterable[int] = ()) -> None:
    """Give each of some clients the lowest number that is free."""
    taken = {*numbers.values(), *reserved}
    free = (number for number in count() if number not in taken)
    numbers.update(zip(node_ids, free, strict=False))
