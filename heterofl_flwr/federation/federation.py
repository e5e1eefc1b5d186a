"""What the server knows: one global model, the clients, the rate and the slice of each client in each round.

Nothing here knows Flower. The strategies of both of its APIs translate between it and this package.
"""

import math
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, ReplyError, RoundError
from heterofl_flwr.core.counting_mean import held_by
from heterofl_flwr.core.exchanged import exchanged_dtype, exchanged_parameters, fingerprint, frozen_parameters
from heterofl_flwr.core.layer_rules import first_names
from heterofl_flwr.core.levels import Mix, dynamic_rate, exact_rate, fixed_rate, joining_rates
from heterofl_flwr.core.moving_slices import SliceFunction, SliceRule, make_slice_function, window_number
from heterofl_flwr.core.randomness import initial_state, kept_random_state
from heterofl_flwr.core.reply_checks import find_label_rows, value_faults
from heterofl_flwr.core.slice_plan import ALL, Plan, is_shared, shared_part
from heterofl_flwr.federation.admission import Answers, admit, check_faults
from heterofl_flwr.federation.nodes import Capability, Nodes
from heterofl_flwr.federation.options import Assignment, Options
from heterofl_flwr.federation.records import RunState
from heterofl_flwr.federation.sampling import Purpose, draw
from heterofl_flwr.nn.buffers import find_channel_tables
from heterofl_flwr.nn.build import called_with_rate, check_build
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.stages.server_stage import RoundContext, stage_name

State = dict[str, Tensor]

KEPT_SLICES = 16
"""Of a round, where they move."""

KEPT_RATES = 128
"""Of how many rates the slices are kept, so that nodes that name ever new ones do not fill the memory."""


@dataclass(kw_only=True)
class Federation:
    """One global model, ``build(rate)``, and the clients that train slices of it.

    ``nodes`` are the clients that have registered.
    """

    build: Callable[[float], nn.Module]
    mix: Mix
    assignment: Assignment = "fix"
    seed: int = 0
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        self.shared = tuple(self.options.transfer.shared)  # patterns of the parameters that travel
        self.personal = self.shared != ALL  # whether clients keep parameters of their own
        self.fidelity = self.options.averaging.fidelity
        self._check_options()
        check_build(self.build)
        # The user may draw from the global generators too.
        self.build = kept_random_state()(called_with_rate(self.build))
        # Nodes say what they can hold, so the rates that are kept are counted.
        self.plan = lru_cache(maxsize=KEPT_RATES)(self._build_plan)
        self.norms = lru_cache(maxsize=KEPT_RATES)(self._read_norms)
        self.untrained = lru_cache(maxsize=KEPT_RATES)(self._find_untrained)
        self.base = lru_cache(maxsize=KEPT_RATES)(lambda rate: fingerprint(self.build(rate)))
        self._moved_plan = lru_cache(maxsize=KEPT_SLICES)(self._build_moved_plan)
        self.nodes: Nodes
        self.reset()
        self.model = self.build(self.mix.global_rate)  # the global model's architecture; its weights are only a start
        self.whole = self.plan(self.mix.global_rate)
        self._frozen_values = frozen_parameters(self.model)
        if self.options.transfer.slice_rule != "prefix":
            self.plan(self.mix.rates[-1])  # it is checked now, as Dynamic may draw that rate late
        exchanged, self._first_names = exchanged_parameters(self.model), MappingProxyType(first_names(self.model))
        self.types = {name: exchanged_dtype(self.model.get_parameter(name)) for name in self.whole.axes}
        self.rows = self._find_rows(exchanged)
        # Whether clients' classes decide nothing: if they are not to, or if such rows are not among what travels.
        keeps_rows = not self.rows and (self.personal or len(exchanged) < len(list(self.model.parameters())))
        self.ignores_labels = self.options.averaging.labels == "none" or keeps_rows

    @property
    def clients_keep(self) -> bool:
        """Whether clients keep something from round to round: parameters of their own, or what a stage keeps."""
        return self.personal or any(stage.keeps_client_state for stage in self.options.averaging.stages)

    def _check_options(self) -> None:
        """Refuse what does not go together in a federation."""
        if self.assignment not in ("fix", "dynamic"):
            raise ConfigError(f"assignment is {self.assignment!r}; expected fix or dynamic")
        if not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed!r}; expected an integer of less than 2^63, as messages hold 64 bits")
        if self.mix.idle and (self.assignment == "dynamic" or self.personal):
            raise ConfigError(
                f"in the mix {self.mix} some clients take no part, always the same ones: expected assignment='fix' and "
                f"everything shared"
            )
        slice_rule = self.options.transfer.slice_rule
        if self.mix.global_rate > self.mix.rates[0] and slice_rule == "prefix":
            raise ConfigError(
                f"the global model has rate {self.mix.global_rate:g}, and the mix {self.mix} no client of it: with "
                f"slice_rule='prefix' nobody trains the rest; expected rolling, random-level or random-client"
            )
        stateful = [stage for stage in self.options.averaging.stages if stage.keeps_client_state]
        stays = [f"what {stage_name(stage)} keeps stays" for stage in stateful]
        if stays and self.personal:
            raise ConfigError(f"{stays[0]} with a client for all parameters: expected all of them to be shared")
        stays += ["parameters that are not shared stay"] if self.personal else []
        if stays and (self.assignment, slice_rule) != ("fix", "prefix"):
            raise ConfigError(
                f"{stays[0]} with a client, so it keeps its slice: expected assignment='fix' and "
                f"slice_rule='prefix', found {self.assignment!r} and {slice_rule!r}"
            )
        self.options.limits.check_levels(self.mix, self.assignment)

    def reset(self) -> None:
        """Forget the clients, so that a run can begin anew."""
        self.nodes = Nodes(self.options.limits.partitions.values())
        self.run_key = secrets.randbits(63)  # so that clients take nothing for this run's that another has left

    def load(self, state: RunState) -> None:
        """Go on with a run, maybe with other clients: all are asked again."""
        self.reset()
        self.nodes.load(state.trained, state.dealt)
        self.run_key = self.run_key if state.run_key is None else state.run_key

    def _find_rows(self, exchanged: Collection[str]) -> list[str]:
        """Return the shared parameters whose rows belong to classes."""
        given = self.options.averaging.label_rows
        found = find_label_rows(self.build, self.mix) if given is None else given
        rows = dict.fromkeys(self._first_names.get(name, name) for name in found)
        return [name for name in rows if is_shared(name, self.shared) and (given or name in exchanged)]

    def _build_plan(self, rate: float) -> Plan:
        """Return the prefix of a rate, of what is shared; ``plan`` caches it."""
        model = self.build(rate)
        plan = Plan.of(self.model, model)
        if self.options.transfer.slice_rule != "prefix":
            self._check_tables(model, rate)
            self._check_frozen(model, rate)
            plan.check_groups()
        return shared_part(plan, self.shared)

    def _check_tables(self, local: nn.Module, rate: float) -> None:
        """Raise an error where a client would train other channels than those that its buffers are about."""
        if tables := find_channel_tables(self.model, local):
            raise ConfigError(
                f"slice_rule is {self.options.transfer.slice_rule!r}, but the model's buffers {', '.join(tables[:5])} "
                f"have entries by channel, of which build({rate:g}) holds the first: they are not sent, so a client "
                f"would train other channels with them. Expected slice_rule='prefix', or in place of the buffer a "
                f"parameter, torch.nn.Parameter(...), which is cut as the others"
            )

    def _check_frozen(self, local: nn.Module, rate: float) -> None:
        """Raise an error where frozen parameters would be a prefix, and the others another slice."""
        whole, part = frozen_parameters(self.model), frozen_parameters(local)
        if cut := [name for name, parameter in part.items() if parameter.shape != whole[name].shape]:
            raise ConfigError(
                f"slice_rule is {self.options.transfer.slice_rule!r}, but the frozen parameters {', '.join(cut[:5])} "
                f"are not sent, and build({rate:g}) holds the first of their entries. Expected slice_rule='prefix', or "
                f"a build that returns heterofl_flwr.core.exchange_frozen(model)"
            )

    def _read_norms(self, rate: float) -> Mapping[str, int]:
        """Return the batch norm layers of a rate, each with its channels; ``norms`` caches them."""
        return {name: layer.num_features for name, layer in batch_norms(self.build(rate)).items()}

    @property
    def all_is_trained(self) -> bool:
        """Whether clients train all that they hold."""
        return not (hasattr(self.model, "untrained") or self._frozen)

    @property
    def _frozen(self) -> set[str]:
        """What no client trains: without noise, the mean of what nobody changed is what it was."""
        named = self.model.named_parameters() if self.options.privacy.noise else ()
        return {name for name, own in named if not own.requires_grad}

    def _find_untrained(self, rate: float) -> frozenset[str]:
        """Return what clients of a rate hold and do not train, as their model says; ``untrained`` caches it."""
        if self.all_is_trained:
            return frozenset()
        patterns: tuple[str, ...] = getattr(self.build(rate), "untrained", ())
        frozen = self._frozen
        return frozenset(name for name in self.plan(rate).axes if name in frozen or is_shared(name, patterns))

    def context(self, server_round: int, state: Mapping[str, Tensor]) -> RoundContext:
        """Return what stages may know of a round."""
        return RoundContext(
            run=self.run_key,
            server_round=server_round,
            state=state,
            model=self.model,
            rows=self.rows,
            untrained=self.untrained,
            holders=partial(self._count_holders, server_round, state),
            by_label=self.options.averaging.labels != "none",
            extra_rows=self.fidelity.extra_rows == "fixed",
            grid=(self.options.privacy.clip, self.options.privacy.step) if self.options.privacy.noise else None,
            learning_rate=self.learning_rate(server_round),
        )

    def learning_rate(self, server_round: int) -> float:
        """Return with what clients train in a round; 0 where the server sends them none."""
        schedule = self.options.transfer.learning_rate
        found = schedule(server_round) if schedule else 0.0
        if not isinstance(found, int | float) or not 0 <= found < math.inf:
            raise ConfigError(f"learning_rate({server_round}) returned {found!r}; expected a number of 0 or more")
        return float(found)

    def _count_holders(self, server_round: int, state: Mapping[str, Tensor], name: str) -> Tensor:
        """Return how many clients hold each entry of a parameter, of all that can be drawn."""
        plans = (self.plan(self.rate(server_round, node_id)) for node_id in self.nodes if self.can_train(node_id))
        return held_by(state[name].float(), Counter(plan.axes[name] for plan in plans if name in plan.axes))

    def train_plan(self, server_round: int, node_id: int, rate: float) -> Plan:
        """Return the slice that a client trains in a round; one that clients of a rate share is computed once."""
        rule = self.options.transfer.slice_rule
        if rule == "prefix":
            return self.plan(rate)
        return self._moved_plan(server_round, rate, self.nodes.partition(node_id) if rule == "random-client" else 0)

    def _build_moved_plan(self, server_round: int, rate: float, partition: int) -> Plan:
        """Return the slice of a rate in a round; ``_moved_plan`` caches it."""
        function = self._slice_function(self.options.transfer.slice_rule, server_round, rate, partition)
        return self.plan(rate).sliced(function)

    def _slice_function(self, rule: SliceRule, server_round: int, rate: float, partition: int = 0) -> SliceFunction:
        number = window_number(server_round, self.options.transfer.roll_by)
        return make_slice_function(rule, seed=self.seed, server_round=number, rate=rate, partition=partition)

    def rates_inside(self, rate: float) -> list[float]:
        """Return a client's rate and, as long as slices are prefixes, those of the models that lie inside its own."""
        inside = self.mix.rates_inside(rate) if self.options.transfer.slice_rule == "prefix" else ()
        return [rate, *inside]

    @property
    def evaluated_rule(self) -> SliceRule:
        """The rule of the slices that are evaluated: only who has the whole model can cut others than prefixes."""
        held = [self.nodes[node_id].holds for node_id in self.nodes]
        whole = all(rate is None or rate >= self.mix.global_rate for rate in held)
        return self.options.transfer.slice_rule if whole or self.options.evaluation.nodes == "all" else "prefix"

    def evaluated_slice(self, server_round: int, rate: float) -> SliceFunction:
        """Return the slice of a smaller rate that an evaluation measures; of ``random-client``, that of client 0."""
        return self._slice_function(self.evaluated_rule, server_round, rate)

    def initial_state(self) -> State:
        """Return the shared parameters of a freshly built global model, the same for equal seeds."""
        whole = initial_state(self.build, self.mix.global_rate, self.seed)
        return {name: tensor for name, tensor in whole.items() if is_shared(name, self.shared)}

    def check_state(self, state: Mapping[str, Tensor]) -> State:
        """Return the parameters of the model in a state, as they travel; running statistics, say, are not kept."""
        # A ``state_dict`` has tied parameters under each of their names; as when a model loads it, the last one counts.
        own = {self._first_names.get(name, name): tensor for name, tensor in state.items()}
        self.whole.check_state(own)
        self._check_frozen_values(own)
        found = {name: own[name].to(dtype) for name, dtype in self.types.items()}
        if fault := next(value_faults(found), None):
            raise RoundError(
                f"the global model is not usable: {fault}; expected finite numbers of initial_arrays, and of what "
                f"changes the model between rounds"
            )
        return found

    def _check_frozen_values(self, state: Mapping[str, Tensor]) -> None:
        """Raise an error where a state has other values of frozen parameters than the model that nodes build."""
        for name, parameter in self._frozen_values.items():
            if name in state and not torch.equal(state[name].bfloat16(), parameter.detach().cpu().bfloat16()):
                raise ConfigError(
                    f"initial_arrays has other values of {name} than build gives it. It is frozen "
                    f"(requires_grad=False), so nodes take it from build: load the same checkpoint there, or let build "
                    f"return heterofl_flwr.core.exchange_frozen(model)"
                )

    def update_nodes(self, present: Collection[int], names: Mapping[int, str], server_round: int = 0) -> None:
        """Set the nodes that are there, with the names of newcomers; each gets a seat, and under *Fix* its rate."""
        self.nodes.update(present, names, server_round)
        if self.assignment == "fix":
            rates, seated = self.nodes.seat_rates, sorted(self.nodes.order, key=self.nodes.seat)
            if new := [node_id for node_id in seated if node_id not in rates]:
                held = [rates[node_id] for node_id in seated if node_id in rates]
                rates.update(zip(new, joining_rates(self.mix, held, len(new)), strict=True))

    def register(
        self, answers: Answers, names: Mapping[int, str] | None = None, present: Collection[int] | None = None
    ) -> None:
        """Register the answers of new clients to the capability query, or why an answer is not usable.

        Clients without a usable answer get the mix's smallest rate, unless they are too many.
        """
        self.update_nodes({*self.nodes.order, *answers} if present is None else present, names or {})
        names = {node_id: self.nodes.registered_name(node_id) for node_id in answers}
        unusable = Capability(capacity=self.mix.rates[-1])
        admitted, faults = admit(
            answers, names, self.options.limits, unusable, lambda answer: self.check_capacity(answer.holds)
        )
        self.nodes.register(admitted)
        named = {self.nodes.name(node_id): reason for node_id, reason in faults.items()}
        wanted = self.options.sampling.min_replies
        check_faults(named, new=len(answers), known=len(self.nodes), wanted=wanted, mix=self.mix)
        self.nodes.demoted |= named.keys()

    def check_capacity(self, capacity: float | None, limit: float = 1.0) -> None:
        """Raise ``ReplyError`` unless a client can train at the rate it reports; under *Dynamic* it draws the mix's."""
        if capacity is None:
            return
        try:
            rate = min(float(exact_rate(capacity)), self.mix.global_rate, limit)
            if self.assignment == "fix":
                self.plan(rate)
        except Exception as error:  # a user's ``build`` raises anything for a rate that it has no model of
            raise ReplyError(f"the capacity it reports is not usable: {error}") from error

    def rate(self, server_round: int, node_id: int) -> float:
        """Return the rate at which a client trains in a round; one with parameters of its own keeps its first one."""
        found = self._find_rate(server_round, node_id)
        return self.nodes.own_rates.setdefault(node_id, found) if self.personal else found

    def _find_rate(self, server_round: int, node_id: int) -> float:
        """Return the rate by the mix, and by what is known of a client now."""
        known = self.nodes[node_id]
        place = self.nodes.seat(node_id) if known.partition is None else known.partition
        if self.assignment == "dynamic":
            return dynamic_rate(
                self.mix, seed=self.seed, server_round=server_round, partition=place, capacity=known.holds
            )
        if known.partition is None and known.capacity is None:
            return min(self.nodes.seat_rates[node_id], known.limit)
        if known.num_partitions is None:  # levels go round the mix, so that nobody who joins changes another's
            number = len(self.mix.parts)
            place %= number
        else:
            number = known.num_partitions
            place = min(place, number - 1)  # a number beyond those that there are is a mistake, or a lie
        return min(fixed_rate(self.mix, place, number, capacity=known.capacity), known.limit)

    def largest_rate(self, server_round: int, node_id: int) -> float:
        """Return the largest rate at which a client may train, in any round."""
        if self.assignment == "fix":
            return self._find_rate(server_round, node_id)
        return min(self.nodes[node_id].holds or 1.0, self.mix.rates[0])

    def can_train(self, node_id: int) -> bool:
        """Whether there is a rate that a client could be given; True of one that has not answered yet."""
        if node_id not in self.nodes:
            return True
        if self.assignment == "fix":
            # Under Fix it is the same in each round.
            return not self.mix.idle or self._find_rate(0, node_id) > 0
        held = self.nodes[node_id].holds
        return held is None or held >= self.mix.rates[-1]

    @property
    def asks_all(self) -> bool:
        """Whether all nodes must have reported their capability before some are drawn.

        Draws need an order of the nodes: that of their registered names, or else that of the partitions they report.
        """
        averaging = self.options.averaging
        return (
            not self.nodes.all_named
            or bool(self.mix.idle or self.clients_keep or self.options.asynchronous.size)
            or self.options.transfer.slice_rule != "prefix"
            or any(stage.needs.holders for stage in averaging.stages)
        )

    def trainable_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return the clients that can be drawn to train; fail if none can."""
        trainable = [node_id for node_id in node_ids if self.can_train(node_id)]
        if not trainable:
            raise RoundError(
                f"none of {len(node_ids)} clients can train, as they can hold no rate of the mix {self.mix}: add a "
                f"smaller rate to it"
            )
        return trainable

    def sample(self, server_round: int, node_ids: Sequence[int], purpose: Purpose) -> list[int]:
        """Return the clients that take part in a round, drawn without replacement; to train, with spare ones."""
        number = self.options.sampling.number(len(node_ids), purpose)
        if purpose == "train":
            number = self.options.sampling.with_spare(number)
        first: list[int] = []
        holders = max((stage.needs.holders for stage in self.options.averaging.stages), default=0)
        if purpose == "train" and (least := min(holders, number)):
            rates = {node_id: self.rate(server_round, node_id) for node_id in node_ids}
            largest = [node_id for node_id in node_ids if rates[node_id] == max(rates.values())]
            first = draw(self._in_order(largest), least, "largest", server_round, seed=self.seed)
        rest = [node_id for node_id in node_ids if node_id not in first] if first else node_ids
        return first + draw(self._in_order(rest), number - len(first), purpose, server_round, seed=self.seed)

    def _in_order(self, node_ids: Sequence[int]) -> Sequence[int]:
        """Return clients in the order of their partitions, or of their names where not all have been asked."""
        return sorted(node_ids, key=self.nodes.partition) if self.asks_all else node_ids
