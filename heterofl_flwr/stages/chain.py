"""The chain: stages around the one mean that sums the updates of a round."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, RoundError
from heterofl_flwr.core.aggregation import Aggregation
from heterofl_flwr.core.aggregator import OpenAggregator
from heterofl_flwr.core.counting_mean import CountingMean, Weights
from heterofl_flwr.core.reply_checks import value_faults
from heterofl_flwr.stages.registry import CLIENT_STAGES
from heterofl_flwr.stages.stage import RoundContext, Said, Stage, State, Talk, Update, label

Kind = Literal["counting", "robust", "asynchronous", "other"]
"""What the mean of a chain is, in words."""

Expected = TypeVar("Expected")

REMOTE_CHANGE = 10
"""A reply from another machine may change its slice by so many L2 norms of the whole model, if no bound is given."""


class Chain:
    """Stages around a mean; it is made once for a run, and opened, fed and closed in each round."""

    def __init__(
        self,
        stages: Iterable[Stage] = (),
        aggregator: OpenAggregator = CountingMean,
        kind: Kind = "counting",
        *,
        weights: Weights = "equal",
        extra_rows: bool = False,
        largest: float = float("inf"),
        norm_bound: float = 0.0,
    ) -> None:
        self.stages, self._open_aggregator, self._kind, self._weights = tuple(stages), aggregator, kind, weights
        self._extra_rows, self._limits = extra_rows, {"largest": largest, "norm_bound": norm_bound}
        self._check()
        self._aggregation: Aggregation  # from opening to closing
        self._context: RoundContext

    def _check(self) -> None:
        """Refuse stages that do not go with one another, all at once; each with what to change."""
        names = [label(stage) for stage in self.stages]
        faults = [
            f"{name}: two stages have this name; expected one, or names of their own (Stage.name)"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        if len(steps := {label(stage): 1 for stage in self.stages if stage.needs.steps}) > 1:
            faults.append(f"{', '.join(steps)}: each steps along what the mean changes; expected one of them")
        for stage in self.stages:
            faults += self._faults(stage)
        faults += self._faults_of_sum()
        if self._kind == "robust" and self._weights != "equal":
            faults.append("robust: a client that says its own weight outvotes others; expected weights='equal'")
        if faults:
            raise ConfigError("; ".join(faults))

    def _faults(self, stage: Stage) -> Iterator[str]:
        """Yield what a stage needs and does not have."""
        needs, name, kind = stage.needs, label(stage), self._kind
        if type(stage).on_client not in {Stage.on_client, *(kind.on_client for kind in CLIENT_STAGES)}:
            yield (
                f"{name} overrides on_client, which clients run of this package's stages alone; expected what it does "
                f"in the client's own app, or in a stage of heterofl_flwr/stages/registry.py"
            )
        if needs.counting_mean and kind != "counting":
            remedy = {
                "robust": "robust=None (server.robust=none)",
                "asynchronous": "rounds that wait (asynchronous.size=0)",
                "other": "aggregator=CountingMean (server.aggregator=counting-mean)",
            }[kind]
            yield f"{name} fits the counting mean; expected {remedy}"
        if kind == "asynchronous" and (type(stage).before, type(stage).after) != (Stage.before, Stage.after):
            yield f"{name} asks the clients of a round together; expected rounds that wait (asynchronous.size=0)"
        if needs.equal_weights and self._weights != "equal":
            yield f"{name} fits a mean in which each client counts once; expected weights='equal'"
        if needs.steps and not getattr(self._open_aggregator, "by_entry", True):
            yield (
                f"{name} steps along what the mean changes, and this aggregator gives factors anew in each round, so "
                f"that their entries have no direction; expected no {name}"
            )

    def _faults_of_sum(self) -> Iterator[str]:
        """Yield what a stage that sums replies itself, so that nobody sees them, makes impossible for others."""
        summing = self.summing
        if summing is None:
            return
        for stage in self.stages:
            if stage is not summing and stage.reads_replies and type(stage).on_reply is not Stage.on_reply:
                yield (
                    f"{label(stage)} works on single replies, of which {label(summing)} lets nobody see any; expected "
                    f"one of them alone"
                )

    @property
    def summing(self) -> Stage | None:
        """The stage that sums replies itself, so that nobody sees one; None for none."""
        return next((stage for stage in self.stages if type(stage).open_aggregator is not Stage.open_aggregator), None)

    @property
    def refused(self) -> dict[int, str]:
        """Clients that stages left out of this round, or named as liars, with the reason."""
        return {client: reason for stage in self.stages for client, reason in stage.refused.items()}

    @property
    def skipped(self) -> bool:
        """Whether a stage leaves the model as it is in this round."""
        return any(stage.skipped for stage in self.stages)

    @property
    def asks(self) -> bool:
        """Whether stages ask clients after they have trained."""
        return any(type(stage).after is not Stage.after for stage in self.stages)

    def instruction(self) -> dict[str, float | str]:
        """Return what the instructions of clients say of the stages."""
        return {key: value for stage in self.stages for key, value in stage.instruction().items()}

    def open(self, context: RoundContext, *, remote: bool = False) -> None:
        """Begin a round; ``remote`` says whether clients are on other machines, and so maybe not ours."""
        state, limits, sums_changes = context.state, dict(self._limits), any(own.needs.changes for own in self.stages)
        if remote and not limits["norm_bound"] and not sums_changes:
            limits["norm_bound"] = REMOTE_CHANGE * max(1.0, math.hypot(*(own.norm().item() for own in state.values())))
        if sums_changes:  # the zeros that they start from take no memory
            state = {name: own.new_zeros((), dtype=torch.float64).expand_as(own) for name, own in state.items()}
        self._context = replace(context, norm_bound=0.0 if sums_changes else limits["norm_bound"])
        open_aggregator = self.summing.open_aggregator if self.summing else self._open_aggregator
        self._aggregation = Aggregation(
            state, context.rows, aggregator=open_aggregator, extra_rows=self._extra_rows, **limits
        )

    def before(self, clients: Mapping[int, Update]) -> Talk[Mapping[int, Said]]:
        """Ask clients before they train; return those that may train, with what their instructions say beside."""
        told = {client: dict[str, object]() for client in clients}
        for stage in self.stages:
            said = yield from stage.before({client: clients[client] for client in told}, self._context)
            told = {client: {**told[client], **own} for client, own in said.items()}
        return told

    def after(self) -> Talk[None]:
        """Ask clients when all replies were added."""
        for stage in self.stages:
            yield from stage.after(self._context)

    def add(self, update: Update) -> None:
        """Add a client's update to the mean; ``ReplyError`` if it does not fit, and then nothing has changed."""
        stages = [own for own in reversed(self.stages) if type(own).on_reply is not Stage.on_reply]
        if self.summing:  # the others have nothing to see
            stages = [self.summing]
        context = self._context
        if stages and update.sent is not None:
            context = replace(context, state=update.sent.state)
        for stage in stages:
            update = _expect(Update, stage.on_reply(update, context), f"{label(stage)}.on_reply")
        self._aggregation.add(update.plan, update.tensors, labels=update.labels, weight=update.weight, sent=update.sent)

    @property
    def replies(self) -> int:
        """How many updates were added in this round."""
        return self._aggregation.replies

    def close(self) -> State:
        """Return the new model, and end the round."""
        held, new = self._aggregation.held, self._aggregation.result()
        for stage in self.stages:
            if type(stage).on_mean is Stage.on_mean:
                continue
            new = _expect(dict, stage.on_mean(new, held, self._context), f"{label(stage)}.on_mean")
            if fault := next(value_faults(new), None):
                raise RoundError(f"{label(stage)}.on_mean returned a model that is not usable: {fault}")
        del self._aggregation, self._context
        return new

    def evaluated(self, state: State) -> State:
        """Return the model that is evaluated and kept, from the one that is trained."""
        for stage in self.stages:
            state = stage.evaluated(state)
        return state

    def facts(self) -> dict[str, float]:
        """Return what the record of a round says of the stages."""
        return {key: value for stage in self.stages for key, value in stage.facts().items()}

    def state(self) -> dict[str, Tensor]:
        """Return what the stages keep from round to round, by the stage's name and its own."""
        return {
            f"{label(stage)}/{key}": _expect(Tensor, own, f"{label(stage)}.state, under {key!r},")
            for stage in self.stages
            for key, own in stage.state().items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what ``state`` returned; with an empty one, begin anew."""
        known = [label(stage) for stage in self.stages]
        for stage in self.stages:
            if stage.needs.steps:  # older versions had one name for all server optimisers
                old, new = "ServerOptimizer/", f"{label(stage)}/"
                state = {f"{new}{own.removeprefix(old)}" if own.startswith(old) else own: state[own] for own in state}
        strange = [name for name in state if not name.startswith(tuple(f"{own}/" for own in known))]
        if other := sorted({name.partition("/")[0] for name in strange}):
            raise ConfigError(
                f"resume has what {', '.join(other)} kept, and the stages of this strategy are "
                f"{', '.join(known) or 'none'}: expected those that the run began with, or a run that begins anew from "
                f"its model (initial_arrays)"
            )
        for stage in self.stages:
            start = f"{label(stage)}/"
            stage.load({name.removeprefix(start): own for name, own in state.items() if name.startswith(start)})


def _expect(kind: type[Expected], found: object, what: str) -> Expected:
    """Return what a stage has returned, which may be of the user's own; raise an error if it is of another type."""
    if not isinstance(found, kind):
        raise ConfigError(f"{what} returned {type(found).__name__}; expected {kind.__name__}")
    return found
