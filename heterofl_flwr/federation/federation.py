"""A federation: an architecture, the registered clients, and their levels."""

import logging
import re
import secrets
from dataclasses import replace
from typing import get_args

from heterofl_flwr.common.errors import ConfigError, Fault, ReplyError
from heterofl_flwr.common.options import is_group, values
from heterofl_flwr.core.slice_rules import NESTED_RULES, SliceFunction, SliceRule
from heterofl_flwr.federation.architecture import Architecture
from heterofl_flwr.federation.callbacks import RunState
from heterofl_flwr.federation.capability import Answers, Capability, check_faults
from heterofl_flwr.federation.client_levels import Levels
from heterofl_flwr.federation.nodes import Nodes
from heterofl_flwr.stages.server_stage import stage_name

FIXED = ("mix", "seed", "stages")
"""Entries of ``Federation.setup`` that a resumed run cannot change."""

logger = logging.getLogger(__name__)


class Federation:
    """An architecture and the clients that train it.

    Attributes
    ----------
    architecture
        The parameters that are sent to clients, and the slice of each rate.
    nodes, levels
        The registered clients, and their rates.
    run_key
        Random id of the run. Clients discard the state of other runs.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture, self.assignment = architecture, architecture.options.slicing.assignment
        self.mix, self.options, self.seed = architecture.mix, architecture.options, architecture.seed
        self._check_options()
        self.reset()

    def _check_options(self) -> None:
        personal, slice_rule = self.architecture.personal, self.options.slicing.slice_rule
        if self.mix.idle and (self.assignment == "dynamic" or personal):
            raise ConfigError(
                f"in the mix {self.mix} some clients take no part, always the same ones: expected assignment='fix' and "
                f"everything shared"
            )
        moving = [rule for rule in get_args(SliceRule) if rule not in NESTED_RULES]
        if self.mix.global_rate > self.mix.rates[0] and slice_rule not in moving:
            raise ConfigError(
                f"the global model has rate {self.mix.global_rate:g}, and no client of the mix {self.mix} has this "
                f"rate: with slice_rule={slice_rule!r} nobody trains the rest; expected one of {', '.join(moving)}"
            )
        stages = self.options.stages
        stays = [f"the state of {stage_name(stage)} stays" for stage in stages if stage.keeps_client_state]
        if stays and personal:
            raise ConfigError(f"{stays[0]} with a client, for all parameters: expected all parameters to be shared")
        stays += ["parameters that are not shared stay"] if personal else []
        growth = self.options.slicing.growth
        if stays and (self.assignment, slice_rule, growth) != ("fix", "prefix", 0):
            raise ConfigError(
                f"{stays[0]} with a client, which must then keep its slice: expected assignment='fix', "
                f"slice_rule='prefix' and growth=0, found {self.assignment!r}, {slice_rule!r} and {growth}"
            )
        self.options.limits.check_levels(self.mix, self.assignment)

    def reset(self) -> None:
        """Forget the clients and begin a new run."""
        self.nodes = Nodes(self.options.limits.partitions.values())
        self.levels = Levels(self.architecture, self.nodes)
        self.run_key = secrets.randbits(63)
        self._evaluated_before: SliceRule | None = None  # evaluated_rule of the run that is resumed

    @property
    def setup(self) -> dict[str, str]:
        """Mix, seed, stages and their options as text. A run can be resumed only with equal ``FIXED`` entries."""
        rates = f"{self.mix}, {self.assignment}, global rate {self.mix.global_rate:g}"
        stages = ", ".join(map(stage_name, self.options.stages))
        groups = {name: getattr(self.options, name) for name in ("slicing", "training", "averaging", "privacy")}
        groups |= {stage_name(stage): stage for stage in self.options.stages if is_group(stage)}
        options = {
            f"{name}.{option}": re.sub(" at 0x[0-9a-f]+", "", repr(value))
            for name, of in groups.items()
            for option, value in values(of).items()
        }
        return {**options, "mix": rates, "seed": str(self.seed), "stages": stages or "none"}

    def load(self, state: RunState) -> None:
        """Resume a run from ``state``; raise ``ConfigError`` if ``state.setup`` differs from ``setup`` in ``FIXED``.

        Log a warning for other differences. The next round queries the capability of all clients again.
        """
        setup = self.setup
        differences = {
            name: f"{name} was {value} and is {setup.get(name)}"
            for name, value in state.setup.items()
            if value != setup.get(name)
        }
        if changes := [text for name, text in differences.items() if name in FIXED]:
            raise ConfigError(
                f"resume is of a run with another setup: {'; '.join(changes)}. Resume it with its own, or begin a new "
                f"run from its model (initial_arrays)"
            )
        if differences:
            logger.warning("the resumed run had other options: %s", "; ".join(differences.values()))
        self.reset()
        self.nodes.load(state.trained, state.dealt, state.nodes, state.seats)
        self.nodes.counted = dict(state.counted)
        self.run_key = self.run_key if state.run_key is None else state.run_key
        self._evaluated_before = state.evaluated_rule

    def register(self, answers: Answers) -> None:
        """Register new clients by their answers to the capability query.

        A client with a ``Fault`` or an invalid answer gets its level in ``limits.levels``, or else the mix's smallest
        rate. Raise ``RoundError`` if too few clients have a known rate.
        """
        self.levels.update_nodes({*self.nodes.order, *answers}, {})
        limits, smallest = self.options.limits, self.mix.rates[-1]
        admitted, faults = dict[int, Capability](), dict[int, str]()
        for node_id, answer in answers.items():
            name, node = self.nodes.registered_name(node_id), str(node_id)
            capability = limits.applied(Capability() if isinstance(answer, Fault) else answer, name, node)
            try:
                if isinstance(answer, Fault):
                    raise ReplyError(answer.reason)
                self.levels.check_capacity(capability.holds)
            except ReplyError as error:
                in_table = bool({name, node} & limits.levels.keys())  # the table sets the node's level
                if not in_table:
                    faults[node_id] = str(error)
                capability = replace(capability, capacity=capability.limit if in_table else smallest)
            admitted[node_id] = capability
        self.nodes.register(admitted, faults.keys())
        named = {self.nodes.name(node_id): reason for node_id, reason in faults.items()}
        min_replies = self.options.sampling.min_replies
        check_faults(named, new=len(answers), total=len(self.nodes), min_replies=min_replies, mix=self.mix)
        self.nodes.demoted |= named.keys()

    @property
    def evaluated_rule(self) -> SliceRule:
        """Slice rule of the models that clients evaluate.

        It is the slice rule of training if that rule moves slices and every client evaluates the global model.
        Otherwise it is ``prefix``. Before a resumed run has queried clients, it is the rule of the earlier run.
        """
        if self._evaluated_before is not None and not self.nodes:
            return self._evaluated_before
        rule, capacities = self.options.slicing.slice_rule, (node.holds for node in self.nodes.values())
        moves, is_for_all = rule not in NESTED_RULES, self.options.evaluation.nodes == "all"
        all_hold = moves and (is_for_all or all(rate is None or rate >= self.mix.global_rate for rate in capacities))
        return rule if all_hold else "prefix"

    def evaluated_slice(self, server_round: int, rate: float) -> SliceFunction:
        """Return the function that selects the slice to evaluate at ``rate``.

        Under the slice rule ``random-client``, the function selects the slice of the client with partition 0.
        """
        return self.architecture.slice_function(self.evaluated_rule, server_round, rate)
