"""HeteroFL between the messages: who trains at which rate, on which slice, and what becomes of the answers.

Nothing here knows Flower. The strategies of both of its APIs are thin skins over a ``Federation``.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache, partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from heterofl_flwr.core.axes import SliceRule, make_slice_function
from heterofl_flwr.core.compression import Changes, restore
from heterofl_flwr.core.counting_mean import Aggregator
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.layer_rules import first_names, untied
from heterofl_flwr.core.levels import Mix, dynamic_rate, fixed_rate, joining_rates
from heterofl_flwr.core.noise import clipped, in_steps, released
from heterofl_flwr.core.plan import ALL, Plan, is_shared, shared_part
from heterofl_flwr.core.randomness import initial_state
from heterofl_flwr.core.replies import LabelRule, check_reply, find_label_rows, trained_rows
from heterofl_flwr.core.robust import Robust, RobustAggregator
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.federation.limits import LARGEST_ENTRY
from heterofl_flwr.federation.nodes import Capability, Levels, Nodes
from heterofl_flwr.federation.privacy import Privacy
from heterofl_flwr.federation.server_optimizer import ServerOptimizer, optimized
from heterofl_flwr.nn.static_norm import batch_norms

State = dict[str, Tensor]
KEPT_RATES = 128
"""Of how many rates the slices are kept, so that nodes that name ever new ones do not fill the memory."""

Assignment = Literal["fix", "dynamic"]


@dataclass(frozen=True, slots=True)
class TrainReply:
    """A client's answer to an instruction to train: its parameters, or what they changed by, and what it says."""

    sub: Mapping[str, Tensor] | Changes
    num_examples: int
    labels: Sequence[int] | None
    capacity: float | None
    metrics: Mapping[str, float]
    num_bytes: int


@dataclass(kw_only=True)
class Federation:
    """One global model and the clients that train slices of it.

    Attributes
    ----------
    build
        From a rate to the model at that rate.
    mix
        The rates of the clients and their shares.
    assignment
        ``fix``: a client's rate stays; ``dynamic``: it is drawn anew each round.
    seed
        Every draw is a function of it, the round and the partition.
    label_rows
        Parameters whose rows belong to classes; None finds them (``find_label_rows``).
    fidelity
        Which of the paper's quirks to keep.
    server_optimizer
        What makes a step of a round's change; None takes the mean as it is.
    choose
        Which slices of the model clients get; see ``heterofl_flwr.core.axes.make_slice_function``.
    shared
        Patterns (``fnmatch``) of the parameters that travel and are averaged. All others stay with their clients, of
        which each then has a model of its own.
    privacy
        What is clipped and noised.
    levels
        Which clients may have which levels, whatever they say.
    robust
        What keeps a minority of hostile clients from moving the model far; None for the counting mean.
    """

    build: Callable[[float], nn.Module]
    mix: Mix
    assignment: Assignment = "fix"
    seed: int = 0
    label_rows: Sequence[str] | None = None
    fidelity: Fidelity = field(default_factory=Fidelity)
    server_optimizer: ServerOptimizer | None = None
    choose: SliceRule = "prefix"
    shared: Sequence[str] = ALL
    privacy: Privacy = field(default_factory=Privacy)
    levels: Levels = field(default_factory=Levels)
    robust: Robust | None = None

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.assignment not in ("fix", "dynamic"):
            raise ConfigError(f"assignment is {self.assignment!r}; expected fix or dynamic")
        if self.choose not in get_args(SliceRule):
            raise ConfigError(f"choose is {self.choose!r}; expected one of {', '.join(get_args(SliceRule))}")
        if self.personal and (self.assignment, self.choose) != ("fix", "prefix"):
            raise ConfigError(
                f"parameters that are not shared stay with a client, so it keeps its slice: expected assignment='fix' "
                f"and choose='prefix', found {self.assignment!r} and {self.choose!r}"
            )
        self.levels.check(self.mix, self.assignment)
        if self.robust and self.privacy.noise:
            raise ConfigError(
                "privacy: noise is measured for the sum of clipped changes; expected robust=None (server.robust=none)"
            )
        if self.robust and not self.shared:
            raise ConfigError("robust: clients share no parameters, so none are averaged; expected robust=None")
        self.nodes: Nodes
        self.optimizer_state: State
        self.forget()
        # Nodes say what they can hold, so the rates that are kept are counted.
        self.plan = lru_cache(maxsize=KEPT_RATES)(self._plan_at)
        self.norms = lru_cache(maxsize=KEPT_RATES)(self._norms_at)
        self._shared_plans: dict[float, Plan] = {}
        self._shared_round = 0

    @cached_property
    def model(self) -> nn.Module:
        """The global model's architecture; its weights are only a start."""
        return self.build(self.mix.global_rate)

    @property
    def turns(self) -> int:
        """Among how many families the clients go in turns."""
        return 1

    @property
    def personal(self) -> bool:
        """Whether clients keep parameters of their own."""
        return tuple(self.shared) != ALL

    @cached_property
    def rows(self) -> Sequence[str]:
        """The shared parameters whose rows belong to classes."""
        rows = find_label_rows(self.build, self.mix) if self.label_rows is None else self.label_rows
        first = first_names(self.model)
        return [name for name in dict.fromkeys(first.get(name, name) for name in rows) if is_shared(name, self.shared)]

    def _plan_at(self, rate: float) -> Plan:
        """Return the prefix of a rate, of what is shared; ``plan`` works out each once."""
        return shared_part(Plan.of(self.model, self.build(rate)), self.shared)

    def plan_of(self, server_round: int, node_id: int, rate: float) -> Plan:
        """Return the slice that a client trains in a round; one that clients of a rate share is worked out once."""
        if self.choose == "random-client":
            return self._chosen(server_round, rate, self.nodes.partition(node_id))
        if self.choose == "prefix":
            return self.plan(rate)
        if self._shared_round != server_round:
            self._shared_round, self._shared_plans = server_round, {}
        if rate not in self._shared_plans:
            self._shared_plans[rate] = self._chosen(server_round, rate, partition=0)
        return self._shared_plans[rate]

    def _chosen(self, server_round: int, rate: float, partition: int) -> Plan:
        function = make_slice_function(
            self.choose, seed=self.seed, server_round=server_round, rate=rate, partition=partition
        )
        return self.plan(rate).sliced(function)

    def initial_state(self) -> State:
        """Return the shared parameters of a freshly built global model, the same for equal seeds."""
        whole = initial_state(self.build, self.mix.global_rate, self.seed)
        return {name: tensor for name, tensor in whole.items() if is_shared(name, self.shared)}

    def forget(self) -> None:
        """Forget the clients and what the server optimiser keeps, so that a run can begin anew."""
        self.nodes = Nodes()
        self.absent = set(self.levels.table)
        self.optimizer_state = {}

    def register(
        self,
        answers: Mapping[int, Capability | None],
        names: Mapping[int, str] | None = None,
        present: Iterable[int] | None = None,
        ids: Mapping[int, str] | None = None,
    ) -> None:
        """Take up new clients; one that did not answer gets the mix's smallest rate.

        ``ids`` are the node ids as ``levels.table`` has them, where they are not those of the answers.
        """
        silent, names = Capability(capacity=self.mix.rates[-1]), names or {}
        admitted = {}
        for node_id, answer in answers.items():
            name, own_id = names.get(node_id, ""), (ids or {}).get(node_id, str(node_id))
            admitted[node_id] = self.levels.applied(answer or silent, name, own_id)
            self.absent -= {name, own_id}
        self.nodes.register(admitted, names, present)
        self._deal_rates()

    def _deal_rates(self) -> None:
        """Give new clients a rate each by their seats, so that what clients say of themselves changes no other's."""
        rates = self.nodes.dealt_rates
        for turn in range(self.turns):
            family = (node_id for node_id in self.nodes if self.nodes.seat(node_id) % self.turns == turn)
            seated = sorted(family, key=self.nodes.seat)
            new = [node_id for node_id in seated if node_id not in rates]
            held = [rates[node_id] for node_id in seated if node_id in rates]
            rates.update(zip(new, joining_rates(self.mix, held, len(new)), strict=True))

    def number(self, node_ids: Sequence[int], fraction: float, least: int | None = None) -> int:
        """Return how many clients take part: ``max(fraction * clients, 1)``, rounded up.

        With ``least``, as in Flower's ``FedAvg``: ``max(fraction * clients, least)``, rounded down.
        """
        if least is not None:
            return max(int(len(node_ids) * fraction), least, 1)
        return max(math.ceil(Fraction(str(fraction)) * len(node_ids)), 1)

    def sample(
        self,
        server_round: int,
        node_ids: Sequence[int],
        fraction: float,
        purpose: str = "train",
        *,
        least: int | None = None,
        spare: float = 0.0,
    ) -> list[int]:
        """Return the clients of a round: ``number`` of them, without replacement, and that share of spare ones."""
        number = self.number(node_ids, fraction, least)
        number += math.ceil(Fraction(str(spare)) * number)
        return self.nodes.sample(node_ids, number, purpose, server_round, seed=self.seed)

    def rate(self, server_round: int, node_id: int) -> float:
        """Return the rate at which a client trains in a round."""
        known, place = self.nodes[node_id], self.nodes.place(node_id)
        if self.assignment == "dynamic":
            return dynamic_rate(
                self.mix, seed=self.seed, server_round=server_round, partition=place, capacity=known.holds
            )
        if known.partition is None and known.capacity is None:
            return min(self.nodes.dealt_rates[node_id], known.limit)
        own, turn = divmod(place, self.turns)
        number = max(len(range(turn, self.nodes.places(node_id), self.turns)), 1)
        own = min(own, number - 1)  # a number beyond those that there are is a mistake, or a lie
        return min(fixed_rate(self.mix, own, number, capacity=known.capacity), known.limit)

    def holds_none(self, node_id: int) -> bool:
        """Whether a client can hold no rate that it could be given."""
        held = self.nodes[node_id].holds
        return self.assignment == "dynamic" and held is not None and held < self.mix.rates[-1]

    def _norms_at(self, rate: float) -> Mapping[str, int]:
        """Return the batch norm layers of a rate, each with its channels; ``norms`` works them out once."""
        return {name: layer.num_features for name, layer in batch_norms(self.build(rate)).items()}

    def open_round(
        self, server_round: int, state: Mapping[str, Tensor], *, norm_bound: float = 0.0, labels: LabelRule = "sent"
    ) -> "Round":
        """Begin a round that starts from this global state; see ``Limits`` for the bound."""
        return Round(self, server_round, self.check_state(state), norm_bound, labels)

    def check_state(self, state: Mapping[str, Tensor]) -> State:
        """Return the parameters of the model in a state; what else it holds, running statistics say, is not kept."""
        plan, own = self.plan(self.mix.global_rate), untied(self.model, state)
        plan.check_state(own)
        return {name: own[name] for name in plan.axes}


class Round:
    """One round: from the state that goes out to the mean of what comes back."""

    def __init__(
        self, federation: Federation, server_round: int, state: State, norm_bound: float, labels: LabelRule
    ) -> None:
        self._federation = federation
        self._server_round = server_round
        self._state = state
        self._labels = labels
        self._step = federation.privacy.step
        # With noise, changes are summed, in steps of a grid; the zeros that they start from take no memory.
        zeros = {name: own.new_zeros((), dtype=torch.float64).expand_as(own) for name, own in state.items()}
        make = partial(RobustAggregator, robust=federation.robust) if federation.robust else Aggregator
        self._aggregator = make(
            zeros if self._step else state,
            federation.rows,
            extra_rows=federation.fidelity.extra_rows == "fixed",
            largest=LARGEST_ENTRY,
            norm_bound=norm_bound,
        )

    @property
    def replies(self) -> int:
        """How many replies were added."""
        return self._aggregator.replies

    def add(
        self, plan: Plan, sub: Mapping[str, Tensor] | Changes, labels: Sequence[int] | None, weight: float = 1.0
    ) -> None:
        """Add a client's reply; in HeteroFL every client counts once (section 3.1)."""
        rows = max((len(self._state[name]) for name in self._federation.rows), default=0)
        if labels is not None and self._federation.rows and len(labels) > rows:
            raise ReplyError(f"{len(labels)} labels, expected up to {rows}: each class once")
        if isinstance(sub, Changes):
            sub = restore(plan, self._state, sub)
        if (self._federation.personal and not self._federation.rows) or self._labels == "none":
            labels = None  # the classifier stays with the clients, or all of its rows count
        elif self._labels == "inferred":
            labels = self._trained(plan, sub, weight)
        clip = self._federation.privacy.clip
        if clip:
            check_reply(self._state, plan, sub, weight, LARGEST_ENTRY)
            sub = self._shortened(plan.extract(self._state), sub, clip)
        self._aggregator.add(plan, sub, labels=labels, weight=weight)

    def _shortened(self, before: State, after: Mapping[str, Tensor], clip: float) -> State:
        if not self._step:
            return clipped(before, after, clip)
        return in_steps({name: own.double() - before[name] for name, own in after.items()}, clip, self._step)

    def _trained(self, plan: Plan, sub: Mapping[str, Tensor], weight: float) -> Sequence[int] | None:
        """Return the classes whose rows a client trained; None where its slice has none, or only some."""
        rows = {name: plan.axes[name] for name in self._federation.rows if name in plan.axes}
        if not rows or any(axes[0].kept < axes[0].full for axes in rows.values()):
            return None
        check_reply(self._state, plan, sub, weight)
        return trained_rows(Plan(rows).extract(self._state), sub, min(axes[0].kept for axes in rows.values()))

    def close(self) -> State:
        """Return the global state after the round."""
        optimizer = self._federation.server_optimizer
        held, new = self._aggregator.held, self._aggregator.result()
        if self._step:
            new = released(self._state, new, held, self._step)
        if optimizer is None:
            return new
        return optimized(optimizer, self._state, new, self._federation.optimizer_state, held, self._server_round)
