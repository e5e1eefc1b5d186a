"""The global model: its parameters, the plan of each rate, and checks of states."""

import logging
from collections.abc import Collection, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, RoundError, ShapeError, listed
from heterofl_flwr.core.channel_order import ChannelOrder
from heterofl_flwr.core.check_reply import value_faults
from heterofl_flwr.core.exchanged import (
    ALL,
    check_patterns,
    exchanged_dtype,
    exchanged_parameters,
    fingerprint,
    first_names,
    frozen_parameters,
    is_shared,
)
from heterofl_flwr.core.label_rows import find_label_rows
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.core.randomness import initial_state, kept_random_state
from heterofl_flwr.core.slice_plan import Plan, shared_part
from heterofl_flwr.core.slice_rules import CLIENT_RULES, NESTED_RULES
from heterofl_flwr.federation.architecture import Architecture, State
from heterofl_flwr.federation.options import Options
from heterofl_flwr.nn.buffers import find_channel_tables, find_other_values, find_random_constants
from heterofl_flwr.nn.build import called_with_rate, check_build
from heterofl_flwr.nn.exits import Exits, find_untrained
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.models import Build

logger = logging.getLogger(__name__)

CACHED_ROUNDS = 16
"""Maximum number of cached plans of slices that move from round to round."""

CACHED_RATES = 128
"""Maximum number of rates with cached plans. Nodes may report any rate, so the cache needs a bound."""


class GlobalModel(Architecture):
    """Architecture with one global model. Each client gets a slice with the shapes of ``build(rate)``."""

    def __init__(self, build: Build, mix: Mix, options: Options, seed: int = 0) -> None:
        super().__init__(mix, options, seed)
        check_build(build)
        _warn_of_scalers(build, mix)
        sizes = dict.fromkeys(("plan", "norms", "untrained", "frozen_fingerprint"), CACHED_RATES)
        # Each instance has its own caches: with lru_cache as a decorator, the cache would keep all instances alive.
        for name, size in {**sizes, "_moved_plan": CACHED_ROUNDS}.items():
            setattr(self, name, lru_cache(size)(getattr(self, name)))
        # A user's build may draw from the global generators.
        self.build = kept_random_state()(called_with_rate(build))
        self.shared = tuple(options.slicing.shared)
        self.personal = self.shared != ALL
        self.model = self.build(mix.global_rate)
        self._frozen_values = frozen_parameters(self.model)
        if drawn := find_random_constants(self.model, self.build, mix.global_rate):
            logger.warning(
                "build gives %s other values in each call, and only parameters are sent, so clients compute with other "
                "values than the server: hold them in parameters with requires_grad=False, and let build return "
                "heterofl_flwr.core.exchange_frozen(model)",
                listed(drawn),
            )
        self.global_plan = self.plan(mix.global_rate)
        check_patterns("by_level", options.slicing.by_level, self.global_plan.axes)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        check_patterns("untrained, the model's tuple of patterns", find_untrained(self.model), parameters)
        if options.slicing.slice_rule != "prefix":
            self.plan(mix.rates[-1])  # check the smallest rate now: Dynamic may draw it late in the run
        self._first_names = first_names(self.model)
        self._state_names = {*self._first_names, *self.model.state_dict()}
        self._check_tied("shared", self.shared)
        self._check_tied("by_level", options.slicing.by_level)
        self.dtypes = {name: exchanged_dtype(self.model.get_parameter(name)) for name in self.global_plan.axes}
        exchanged = exchanged_parameters(self.model)
        self.rows = self._find_rows(exchanged)
        rows_stay = not self.rows and (self.personal or len(exchanged) < len(list(self.model.parameters())))
        self.ignores_labels = options.averaging.labels == "none" or rows_stay
        if options.slicing.slice_rule == "important":
            plans = [self.plan(rate) for rate in mix.all_rates]
            self.channel_order = ChannelOrder(self.model, plans, options.slicing.rank_margin)

    def _check_tied(self, option: str, patterns: Collection[str]) -> None:
        """Raise ``ConfigError`` if patterns match a name of a tied parameter, but not the name that is exchanged."""
        exchanged = exchanged_parameters(self.model)
        for name, first in self._first_names.items():
            if first in exchanged and is_shared(name, patterns) and not is_shared(first, patterns):
                raise ConfigError(
                    f"{option} matches {name}, which is {first} (a tied parameter) and is exchanged under this name: "
                    f"expected patterns that match {first} too"
                )

    def plan(self, rate: float) -> Plan:
        """Return the plan with the first channels of each layer, in the shapes of ``build(rate)``.

        Parameters that are not shared are left out.
        """
        model = self.build(rate)
        plan = Plan.of(self.model, model)
        if others := find_other_values(self.model, model):
            logger.warning(
                "build(%g) gives %s other values than build(%g), and neither frozen parameters nor buffers are sent, "
                "so levels train with different ones: draw random ones before the layers that shrink, or from a "
                "torch.Generator of their own",
                *(rate, listed(others), self.mix.global_rate),
            )
        if self.options.slicing.slice_rule != "prefix":
            self._check_moving(model, rate)
            plan.check_groups()
        return shared_part(plan, self.shared)

    def _check_moving(self, local: nn.Module, rate: float) -> None:
        """Raise ``ConfigError`` if the slice of ``rate`` cannot move to other channels.

        It cannot move if ``local``, the model of ``rate``, has only a part of a frozen parameter, or of a buffer with a
        value for each channel. These tensors are not sent, so they would keep the values of the first channels.
        """
        rule = self.options.slicing.slice_rule
        if tables := find_channel_tables(self.model, local):
            raise ConfigError(
                f"slice_rule is {rule!r}, but the model's buffers {listed(tables)} have a value for each channel. "
                f"They are not sent: build({rate:g}) has those of the first channels, but a client would train other "
                f"channels. Expected slice_rule='prefix', or a parameter with requires_grad=False in place of the "
                f"buffer and a build that returns heterofl_flwr.core.exchange_frozen(model)"
            )
        frozen, values = frozen_parameters(local), self._frozen_values
        if cut := [name for name, parameter in frozen.items() if parameter.shape != values[name].shape]:
            raise ConfigError(
                f"slice_rule is {rule!r}, but the frozen parameters {listed(cut)} are not sent, and build({rate:g}) "
                f"holds the first of their entries. Expected slice_rule='prefix', or a build that returns "
                f"heterofl_flwr.core.exchange_frozen(model)"
            )

    def train_plan(self, server_round: int, rate: float, partition: int) -> Plan:
        """Return the plan of a client's slice in a round: ``plan(rate)``, moved if the slice rule moves slices."""
        rule = self.options.slicing.slice_rule
        if rule in NESTED_RULES:
            return self.plan(rate)
        return self._moved_plan(server_round, rate, partition if rule in CLIENT_RULES else 0)

    def _moved_plan(self, server_round: int, rate: float, partition: int) -> Plan:
        function = self.slice_function(self.options.slicing.slice_rule, server_round, rate, partition)
        return self.plan(rate).sliced(function)

    def norms(self, rate: float) -> Mapping[str, int]:
        """Return the number of channels of each batch norm layer at ``rate``, by layer name."""
        return {name: layer.num_features for name, layer in batch_norms(self.build(rate)).items()}

    @property
    def trains_all(self) -> bool:
        """Whether each parameter is averaged over all clients that hold it, as if all of them train it.

        False if the model has an attribute ``untrained`` or contains ``Exits``, or if it has frozen parameters and
        there is privacy noise.
        """
        has_exits = any(isinstance(layer, Exits) for layer in self.model.modules())
        return not (has_exits or hasattr(self.model, "untrained") or self._frozen)

    @property
    def _frozen(self) -> set[str]:
        """Names of the frozen parameters, which noise must not change; empty without privacy noise."""
        parameters = self.model.named_parameters() if self.options.privacy.noise else ()
        return {name for name, parameter in parameters if not parameter.requires_grad}

    def untrained(self, rate: float) -> frozenset[str]:
        """Return the names of parameters that clients of ``rate`` receive and do not train.

        Frozen parameters are included only with privacy noise.
        """
        if self.trains_all:
            return frozenset()
        patterns = find_untrained(self.build(rate))
        frozen = self._frozen
        return frozenset(name for name in self.plan(rate).axes if name in frozen or is_shared(name, patterns))

    def frozen_fingerprint(self, rate: float) -> str:
        """Return a hash of the frozen parameters that are not sent; '' if the model has no such parameters."""
        return fingerprint(self.build(rate))

    def initial_state(self) -> State:
        """Build the global model with the run's seed; return its shared parameters."""
        state = initial_state(self.build, self.mix.global_rate, self.seed)
        if _equals(state, self.model) and _equals(
            initial_state(self.build, self.mix.global_rate, self.seed + 1), self.model
        ):
            logger.warning(
                "build returns equal parameters for each seed, so seed=%d does not draw the first model: make a new "
                "model in each call (functools.cache and elastic(model, ...) return copies of one) or call "
                "torch.manual_seed before; values that are pretrained, or that you have seeded, may stay",
                self.seed,
            )
        return {name: tensor for name, tensor in state.items() if is_shared(name, self.shared)}

    def check_state(self, state: Mapping[str, Tensor]) -> State:
        """Check a global model's parameters; return those that clients exchange, in the dtypes of messages."""
        # A ``state_dict`` lists a tied parameter under each of its names. The last entry counts, as in load_state_dict.
        tensors = {self._first_names.get(name, name): tensor for name, tensor in state.items()}
        self.global_plan.check_state(tensors)
        if extra := sorted(state.keys() - self._state_names):
            raise ShapeError(
                f"the global state has {listed(extra)}, which the model of build lacks: leave these out of "
                f"initial_arrays and of what aggregate_train returns, or let build return a model that has them"
            )
        _check_frozen_values(self._frozen_values, tensors)
        personal = exchanged_parameters(self.model).keys() - self.dtypes.keys() if self.personal else set()
        if unused := personal & tensors.keys():
            logger.warning(
                "the initial model has %s, which clients do not get: these parameters stay with them, and begin with "
                "the values that build gives them",
                listed(unused),
            )
        checked = {name: tensors[name].to(dtype) for name, dtype in self.dtypes.items()}
        if fault := next(value_faults(checked), None):
            raise RoundError(
                f"the global model is not usable: {fault}; expected finite numbers in initial_arrays "
                f"(initial_parameters in the classic API), and from code that changes the model between rounds"
            )
        return checked

    def _find_rows(self, exchanged: Collection[str]) -> list[str]:
        label_rows = self.options.averaging.label_rows
        names = find_label_rows(self.build, self.mix) if label_rows is None else label_rows
        rows = dict.fromkeys(self._first_names.get(name, name) for name in names)
        return [name for name in rows if is_shared(name, self.shared) and (label_rows or name in exchanged)]


def _warn_of_scalers(build: Build, mix: Mix) -> None:
    """Warn if ``elastic`` made the Scalers of ``build`` for another largest rate than that of the mix."""
    largest = getattr(build, "global_rate", None) if getattr(build, "scaler", False) is True else None
    if isinstance(largest, int | float) and largest != mix.global_rate:
        logger.warning(
            "elastic made build for models of rate %g or less, and the largest rate of the mix %s is %g: its Scaler "
            "changes the largest model in training and not in evaluation; expected elastic(..., global_rate=%g)",
            *(largest, mix, mix.global_rate, mix.global_rate),
        )


def _check_frozen_values(frozen: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    for name, parameter in frozen.items():
        if name in state and not torch.equal(state[name].bfloat16(), parameter.detach().cpu().bfloat16()):
            raise ConfigError(
                f"initial_arrays (initial_parameters in the classic API) or resume has other values of {name} than "
                f"build gives it. It is frozen (requires_grad=False), so nodes take it from build: load the same "
                f"checkpoint there, or let build return heterofl_flwr.core.exchange_frozen(model)"
            )


def _equals(state: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether the parameters of ``model`` equal those in ``state``."""
    parameters = exchanged_parameters(model)
    return bool(state) and all(torch.equal(tensor, parameters[name].to(tensor)) for name, tensor in state.items())
