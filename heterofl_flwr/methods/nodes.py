"""What the server knows of its clients: partition, capacity, classes."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.core.seeds import generator
from heterofl_flwr.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What a client says of itself.

    Attributes
    ----------
    capacity
        The largest rate it can hold, or None if it does not say.
    partition, num_partitions
        Which part of the data is its own, or None if it does not say.
    num_examples
        How many training examples it has; 0 if it does not say.
    labels
        The classes it has, or None if it does not say.
    """

    capacity: float | None = None
    partition: int | None = None
    num_partitions: int | None = None
    num_examples: int = 0
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.capacity is not None:
            exact_rate(self.capacity)
        if self.partition is not None and self.partition < 0:
            raise ConfigError(f"partition {self.partition} does not exist: expected a number from 0 up")
        if self.num_examples < 0:
            raise ConfigError(f"{self.num_examples} examples are not possible: expected a number from 0 up")


class Nodes:
    """The clients by node id. Their numbers are stable within a run: once a client has a partition, it keeps it."""

    def __init__(self) -> None:
        self._known: dict[int, Capability] = {}
        self._partitions: dict[int, int] = {}

    def __contains__(self, node_id: int) -> bool:
        return node_id in self._known

    def __getitem__(self, node_id: int) -> Capability:
        return self._known[node_id]

    def register(
        self,
        answers: Mapping[int, Capability],
        names: Mapping[int, str] | None = None,
        present: Iterable[int] | None = None,
    ) -> None:
        """Take up clients that were not known, with what they said of themselves.

        A client without a partition of its own gets the lowest free number: by registered name where it has one
        (``names``), else by node id. Node ids are random, so such a run cannot be repeated. A known client that is not
        ``present`` is forgotten: a node that was started anew has another id, but the same partition.
        """
        if present is not None:
            self._forget(self._known.keys() - set(present))
        self._known.update(answers)
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
        self._number(unnumbered, names or {})

    def set_capacity(self, node_id: int, capacity: float) -> None:
        """Take up a change that a client reported; it counts from the next round on."""
        self._known[node_id] = replace(self._known[node_id], capacity=capacity)

    def partition(self, node_id: int) -> int:
        """Return the number that stands for a client in every random draw."""
        return self._partitions[node_id]

    def num_partitions(self, node_ids: Iterable[int]) -> int:
        """Return how many clients there are: as many as most of them say, or else as many as are known."""
        ids = list(node_ids)
        said = Counter(self._known[node_id].num_partitions or 0 for node_id in ids)
        number, clients = said.most_common(1)[0] if said else (0, 0)
        if number and 2 * clients > len(ids):
            return max(len(ids), number)  # so that no single one can change the levels of all others
        return max([len(ids), *said, *(self._partitions[node_id] + 1 for node_id in ids)])

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

    def _forget(self, node_ids: Iterable[int]) -> None:
        for node_id in node_ids:
            del self._known[node_id], self._partitions[node_id]

    def _number(self, node_ids: list[int], names: Mapping[int, str]) -> None:
        unnamed = [node_id for node_id in node_ids if not names.get(node_id)]
        if unnamed:
            logger.warning(
                "%d nodes have neither a partition-id in their node config nor a registered name: they are numbered "
                "by their random ids, so this run cannot be repeated exactly",
                len(unnamed),
            )
        taken = set(self._partitions.values())
        free = (number for number in range(len(taken) + len(node_ids)) if number not in taken)
        for node_id in sorted(node_ids, key=lambda node_id: (names.get(node_id) or "", node_id)):
            self._partitions[node_id] = next(free)
