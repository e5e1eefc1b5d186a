"""Rates (relative model sizes) of clients, and sampling of the clients of a round."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from heterofl_flwr.common.errors import Fault, ReplyError, RoundError, counted, without_numbers
from heterofl_flwr.core.aggregator import Version
from heterofl_flwr.core.assignment import dynamic_rate, fixed_rate, grown_rate, joining_rates
from heterofl_flwr.core.axes import Axes
from heterofl_flwr.core.counting_mean import held_by
from heterofl_flwr.core.levels import exact_rate, level_name
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.core.slice_rules import CLIENT_RULES, NESTED_RULES
from heterofl_flwr.federation.architecture import Architecture
from heterofl_flwr.federation.nodes import Nodes
from heterofl_flwr.federation.sampling import Purpose, draw
from heterofl_flwr.stages.server_stage import HolderCounts


@dataclass(frozen=True, slots=True)
class Sampled:
    """Rate, level and slice of a sampled client.

    In an asynchronous run, ``sent`` is the version of the slice that the client received.
    """

    rate: float
    level: str
    plan: Plan
    sent: Version | None = None


class Levels:
    """Rates of the clients of one run, and sampling of clients.

    With *Fix*, a client keeps its rate, unless it reports another capacity. With *Dynamic*, a rate is drawn for each
    client in each round. ``Slicing.growth`` limits the rate in early rounds.
    """

    def __init__(self, architecture: Architecture, nodes: Nodes) -> None:
        self._architecture, self._nodes = architecture, nodes
        self._mix, self._seed, self._options = architecture.mix, architecture.seed, architecture.options
        self._assignment = self._options.slicing.assignment
        # If a stage needs several holders of each entry, at least this many clients of the largest rate are sampled.
        self.holders = max((stage.needs.holders for stage in self._options.stages), default=0)

    def check_capacity(self, capacity: float | None, limit: float = 1.0) -> None:
        """Raise ``ReplyError`` if a reported capacity is not a rate.

        Under *Fix*, also raise it if the model has no slice of this rate, for example because ``build`` fails.
        ``limit`` is the largest rate that the server allows this client; a larger capacity is checked as ``limit``.
        """
        if capacity is None:
            return
        try:
            rate = min(float(exact_rate(capacity)), self._mix.global_rate, limit)
            if self._assignment == "fix":
                self._architecture.plan(rate)
        except Exception as error:  # a user's ``build`` may raise any error for a rate that it does not support
            raise ReplyError(f"the capacity it reports is not usable: {error}") from error

    def usable_capacity(self, node_id: int, capacity: float | None) -> float | None:
        """Return the ``capacity`` in a client's reply if ``check_capacity`` accepts it.

        Otherwise raise ``ReplyError``, or return None if the client is in ``Nodes.demoted``.
        """
        try:
            self.check_capacity(capacity, self._nodes[node_id].limit)
        except ReplyError:
            if self._nodes.name(node_id) not in self._nodes.demoted:
                raise
            return None  # a warning was logged before, and the node trains at the smallest rate
        return capacity

    def update_nodes(self, present: Collection[int], names: Mapping[int, str], server_round: int = 0) -> None:
        """Set the present nodes and the names of new nodes; under *Fix*, assign rates to new nodes."""
        # The rate follows from the seat (position by name and id), not from the reports of other nodes.
        if not self._nodes.update(present, names, server_round) or self._assignment != "fix":
            return
        rates, node_ids = self._nodes.seats.rates, sorted(self._nodes.order, key=self._nodes.seats.__getitem__)
        if joining := [node_id for node_id in node_ids if node_id not in rates]:
            taken = [rates[node_id] for node_id in node_ids if node_id in rates]
            rates.update(zip(joining, joining_rates(self._mix, taken, len(joining)), strict=True))

    def rate(self, server_round: int, node_id: int) -> float:
        """Return the rate at which a client trains in a round, limited by ``Slicing.growth``.

        A client with personal parameters keeps the rate that the first call returned. A client that stores tensors of
        stages keeps the rate of its first reply in a mean.
        """
        growth = self._options.slicing.growth
        rate = grown_rate(self._mix, self.assigned_rate(server_round, node_id), server_round, growth)
        own_rates = self._nodes.own_rates
        return own_rates.setdefault(node_id, rate) if self._architecture.personal else own_rates.get(node_id, rate)

    def assigned_rate(self, server_round: int, node_id: int) -> float:
        """Return a client's rate in a round, before ``Slicing.growth`` is applied to it."""
        node = self._nodes[node_id]
        place = self._nodes.seats[node_id] if node.partition is None else node.partition
        if self._assignment == "dynamic":
            return dynamic_rate(
                self._mix, seed=self._seed, server_round=server_round, partition=place, capacity=node.holds
            )
        if node.partition is None and node.capacity is None:
            return min(self._nodes.seats.rates[node_id], node.limit)
        if node.num_partitions is None:  # cycle through the mix: a joining client changes no other client's level
            number = len(self._mix.parts)
            place %= number
        else:
            number = node.num_partitions
            place = min(place, number - 1)  # a node may report a partition beyond its own number of partitions
        return min(fixed_rate(self._mix, place, number, capacity=node.capacity), node.limit)

    def largest_rate(self, server_round: int, node_id: int) -> float:
        """Return the largest rate that a client can get in any round.

        Under *Fix*, this is its rate without ``Slicing.growth``.
        """
        if self._assignment == "fix":
            return self.assigned_rate(server_round, node_id)
        return min(self._nodes[node_id].holds or 1.0, self._mix.rates[0])

    def can_train(self, node_id: int) -> bool:
        """Whether a client can take part in training.

        Under *Fix*, False if the mix leaves the client idle (rate 0). Under *Dynamic*, False if its known capacity is
        below the smallest rate of the mix.
        """
        if self._assignment == "fix":
            return not self._mix.idle or self.assigned_rate(0, node_id) > 0  # the rate is the same in each round
        capacity = self._nodes[node_id].holds
        return capacity is None or capacity >= self._mix.rates[-1]

    def trainable_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return ``node_ids`` without clients that cannot train; raise ``RoundError`` if no client is left."""
        answered = self._nodes if self._mix.idle or self._assignment == "dynamic" else ()
        idle = {node_id for node_id in answered if not self.can_train(node_id)}
        trainable = [node_id for node_id in node_ids if node_id not in idle] if idle else list(node_ids)
        if not trainable:
            reason = (
                f"as all of them are in the idle part of the mix {self._mix}: start nodes of other partitions"
                if self._assignment == "fix"
                else f"as they can hold no rate of the mix {self._mix}: add a smaller rate to it"
            )
            raise RoundError(f"none of {counted(len(node_ids), 'client')} can train, {reason}")
        return trainable

    def sample(self, server_round: int, node_ids: Sequence[int], purpose: Purpose) -> list[int]:
        """Sample the clients of a round without replacement.

        If a stage has ``Needs(holders=N)``, a training round first draws up to N clients of the largest rate.
        """
        number = self._options.sampling.number(len(node_ids), purpose)
        if purpose == "train":
            number = self._options.sampling.with_spare(number)
        sampled: list[int] = []
        if purpose == "train" and (least := min(self.holders, number)):
            rates = {node_id: self.rate(server_round, node_id) for node_id in node_ids}
            largest_rate = max(rates.values())
            largest = [node_id for node_id in node_ids if rates[node_id] == largest_rate]
            sampled = draw(self._in_order(largest), least, "largest", server_round, seed=self._seed)
        rest = [node_id for node_id in node_ids if node_id not in sampled] if sampled else node_ids
        number -= len(sampled)
        return sampled + draw(self._in_order(rest), number, purpose, server_round, seed=self._seed)

    def _in_order(self, node_ids: Sequence[int]) -> Sequence[int]:
        return sorted(node_ids, key=self._nodes.partition) if self.asks_all else node_ids

    @property
    def asks_all(self) -> bool:
        """Whether all nodes must report their capability before clients are sampled."""
        options = self._options
        return (
            not self._nodes.all_named
            or bool(self._mix.idle or self._architecture.clients_keep or options.asynchronous.size or self.holders)
            or options.slicing.slice_rule not in NESTED_RULES
        )

    def count_holders(self, server_round: int, state: Mapping[str, Tensor]) -> HolderCounts:
        """Return a function of a parameter's name: for each entry, the number of clients that hold and train it.

        The function counts all registered clients when it is first called.
        """

        @cache
        def clients() -> Counter[tuple[float, int]]:
            has_own = self._options.slicing.slice_rule in CLIENT_RULES  # else clients of equal rate hold equal slices
            return Counter(
                (self.rate(server_round, node_id), self._nodes.partition(node_id) if has_own else 0)
                for node_id in self._nodes
                if self.can_train(node_id)
            )

        def count(name: str) -> Tensor:
            holding = Counter[Axes]()
            for (rate, partition), number in clients().items():
                axes = self._architecture.train_plan(server_round, rate, partition).axes
                if name in axes and name not in self._architecture.untrained(rate):
                    holding[axes[name]] += number
            return held_by(state[name].float(), holding)

        return count


def failed_levels(slices: Mapping[int, Sampled], faults: Mapping[int, Fault]) -> dict[str, str]:
    """Return a hint for each level whose clients all failed with the same error; numbers in the error may differ."""
    errors: dict[float, set[str]] = defaultdict(set)
    for node_id, sampled in slices.items():
        fault = faults.get(node_id)
        errors[sampled.rate].add(without_numbers(fault.reason) if fault and fault.kind == "failed" else "")
    hints: dict[str, str] = {}
    for rate, texts in errors.items():
        if len(texts) == 1 and "" not in texts:
            level, of_shapes = level_name(rate), re.search("shape|size", next(iter(texts)))
            advice = f": try its model alone, build({rate:g})(inputs)" if of_shapes else ""
            hints[level] = f"no client of level {level} could train{advice}"
    return hints
