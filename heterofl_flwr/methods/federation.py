"""HeteroFL between the messages: who trains at which rate, on which slice, and what becomes of the answers.

Nothing here knows Flower. The strategies of both of its APIs are thin skins over a ``Federation``.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from heterofl_flwr.core.aggregate import Aggregator
from heterofl_flwr.core.assignment import dynamic_rate, fixed_rate
from heterofl_flwr.core.choose import SliceRule, chooser, prefix
from heterofl_flwr.core.compress import Changes, restore
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.sharing import ALL, initial_state, is_shared, shared_part
from heterofl_flwr.errors import ConfigError, ReplyError, ShapeError
from heterofl_flwr.methods.nodes import Capability, Nodes
from heterofl_flwr.nn.moments import Moments, check_layers
from heterofl_flwr.nn.static_norm import batch_norms

State = dict[str, Tensor]
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
    server_momentum
        Momentum of the global model from round to round; entries that nobody trained do not move.
    choose
        Which slices of the model clients get; see ``heterofl_flwr.core.choose.chooser``.
    shared
        Patterns (``fnmatch``) of the parameters that travel and are averaged. All others stay with their clients, of
        which each then has a model of its own.
    """

    build: Callable[[float], nn.Module]
    mix: Mix
    assignment: Assignment = "fix"
    seed: int = 0
    label_rows: Sequence[str] | None = None
    fidelity: Fidelity = field(default_factory=Fidelity)
    server_momentum: float = 0.0
    choose: SliceRule = "prefix"
    shared: Sequence[str] = ALL

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.assignment not in ("fix", "dynamic"):
            raise ConfigError(f"assignment is {self.assignment!r}; expected fix or dynamic")
        if not 0 <= self.server_momentum < 1:
            raise ConfigError(f"server_momentum is {self.server_momentum}; expected 0 up to, not including, 1")
        if self.choose not in get_args(SliceRule):
            raise ConfigError(f"choose is {self.choose!r}; expected one of {', '.join(get_args(SliceRule))}")
        if self.personal and (self.assignment, self.choose) != ("fix", "prefix"):
            raise ConfigError(
                f"parameters that are not shared stay with a client, so it keeps its slice: expected assignment='fix' "
                f"and choose='prefix', found {self.assignment!r} and {self.choose!r}"
            )
        self.nodes: Nodes
        self.velocity: State
        self.forget()
        self._plans: dict[float, Plan] = {}
        self._norms: dict[float, Mapping[str, int]] = {}

    @cached_property
    def model(self) -> nn.Module:
        """The global model's architecture; its weights are only a start."""
        return self.build(self.mix.global_rate)

    @property
    def personal(self) -> bool:
        """Whether clients keep parameters of their own."""
        return tuple(self.shared) != ALL

    @cached_property
    def rows(self) -> Sequence[str]:
        """The shared parameters whose rows belong to classes."""
        rows = find_label_rows(self.build, self.mix) if self.label_rows is None else self.label_rows
        return [name for name in rows if is_shared(name, self.shared)]

    def plan(self, rate: float) -> Plan:
        """Return the prefix of a rate, of what is shared; each is worked out once."""
        if rate not in self._plans:
            self._plans[rate] = shared_part(Plan.of(self.model, self.build(rate)), self.shared)
        return self._plans[rate]

    def plan_of(self, server_round: int, node_id: int, rate: float) -> Plan:
        """Return the slice that a client trains in a round."""
        partition = self.nodes.partition(node_id)
        choose = chooser(self.choose, seed=self.seed, server_round=server_round, rate=rate, partition=partition)
        return self.plan(rate) if choose is prefix else self.plan(rate).chosen(choose)

    def initial_state(self) -> State:
        """Return the shared parameters of a freshly built global model, the same for equal seeds."""
        whole = initial_state(self.build, self.mix.global_rate, self.seed)
        return {name: tensor for name, tensor in whole.items() if is_shared(name, self.shared)}

    def forget(self) -> None:
        """Forget the clients and the momentum, so that a run can begin anew."""
        self.nodes = Nodes()
        self.velocity = {}

    def register(
        self,
        answers: Mapping[int, Capability | None],
        names: Mapping[int, str] | None = None,
        present: Iterable[int] | None = None,
    ) -> None:
        """Take up new clients; one that did not answer gets the mix's smallest rate."""
        silent = Capability(capacity=self.mix.rates[-1])
        self.nodes.register({node: answer or silent for node, answer in answers.items()}, names, present)

    def sample(self, server_round: int, node_ids: Sequence[int], fraction: float, purpose: str = "train") -> list[int]:
        """Return the clients of a round: ``max(fraction * clients, 1)`` of them, without replacement."""
        number = max(math.ceil(Fraction(str(fraction)) * len(node_ids)), 1)
        return self.nodes.sample(node_ids, number, purpose, server_round, seed=self.seed)

    def rate(self, server_round: int, node_id: int, num_partitions: int) -> float:
        """Return the rate at which a client trains in a round."""
        partition = self.nodes.partition(node_id)
        capacity = self.nodes[node_id].capacity
        if self.assignment == "fix":
            return fixed_rate(self.mix, partition, num_partitions, capacity=capacity)
        return dynamic_rate(self.mix, seed=self.seed, server_round=server_round, partition=partition, capacity=capacity)

    def add_moments(self, merged: dict[float, Moments], found: Mapping[float, Moments]) -> None:
        """Add a client's static batch norm moments to those of others; refuse them whole if any do not fit."""
        for rate, own in found.items():
            if own.kind != self.fidelity.moments:
                raise ReplyError(f"moments of kind {own.kind}, expected {self.fidelity.moments}")
            check_layers(own, self.norms(rate))
        merged |= {rate: merged[rate] + own if rate in merged else own for rate, own in found.items()}

    def norms(self, rate: float) -> Mapping[str, int]:
        """Return the batch norm layers of a rate, each with its channels; they are worked out once."""
        if rate not in self._norms:
            layers = batch_norms(self.build(rate))
            self._norms[rate] = {name: layer.num_features for name, layer in layers.items()}
        return self._norms[rate]

    def open_round(self, state: Mapping[str, Tensor]) -> "Round":
        """Begin a round that starts from this global state."""
        return Round(self, self.check_state(state))

    def check_state(self, state: Mapping[str, Tensor]) -> State:
        """Return the parameters of the model in a state; what else it holds, running statistics say, is not kept."""
        self.plan(self.mix.global_rate).check_state(state)
        return {name: state[name] for name in self.plan(self.mix.global_rate).axes}


class Round:
    """One round: from the state that goes out to the mean of what comes back."""

    def __init__(self, federation: Federation, state: State) -> None:
        self._federation = federation
        self._state = state
        self._aggregator = Aggregator(state, federation.rows, extra_rows=federation.fidelity.extra_rows == "fixed")

    @property
    def replies(self) -> int:
        """How many replies were added."""
        return self._aggregator.replies

    def add(
        self, plan: Plan, sub: Mapping[str, Tensor] | Changes, labels: Sequence[int] | None, weight: float = 1.0
    ) -> None:
        """Add a client's reply; in HeteroFL every client counts once (section 3.1)."""
        if isinstance(sub, Changes):
            sub = restore(plan, self._state, sub)
        if self._federation.personal and not self._federation.rows:
            labels = None  # the classifier stays with the clients
        self._aggregator.add(plan, sub, labels=labels, weight=weight)

    @torch.no_grad()
    def close(self) -> State:
        """Return the global state after the round."""
        new = self._aggregator.result()
        momentum = self._federation.server_momentum
        if not momentum:
            return new
        velocity = self._federation.velocity
        for name, mean in new.items():
            old = self._state[name]
            change = mean - old
            moved = momentum * velocity[name] + change if name in velocity else change
            # An entry without any change was trained by nobody: it and its momentum stay as they are.
            trained = change != 0
            velocity[name] = torch.where(trained, moved, velocity.get(name, change))
            new[name] = torch.where(trained, old + moved, old)
        return new


def find_label_rows(build: Callable[[float], nn.Module], mix: Mix) -> tuple[str, ...]:
    """Return the parameters whose rows belong to classes.

    A model may name them itself (``label_rows``). Otherwise they are those of the last linear layer whose outputs do
    not shrink with the rate.
    """
    full, small = build(mix.global_rate), build(mix.rates[-1])
    named = getattr(full, "label_rows", None)
    if named is not None:
        return tuple(named)
    layers = dict(small.named_modules())
    found: tuple[str, ...] = ()
    for name, layer in full.named_modules():
        if isinstance(layer, nn.Linear):
            partner = layers.get(name)
            if not isinstance(partner, nn.Linear):
                raise ShapeError(
                    f"layer {name} is Linear in the global model, but {type(partner).__name__} in a smaller"
                )
            if partner.out_features == layer.out_features:
                prefix = f"{name}." if name else ""
                found = tuple(prefix + own for own, _ in layer.named_parameters(recurse=False))
    return found
