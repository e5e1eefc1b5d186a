"""The chain of server stages."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import SupportsFloat

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, check_returned
from heterofl_flwr.common.named_tensors import entries_under
from heterofl_flwr.core.aggregation import Aggregation
from heterofl_flwr.core.aggregator import OpenAggregator
from heterofl_flwr.core.check_reply import LARGEST_ENTRY, check_model
from heterofl_flwr.core.counting_mean import CountingMean, Weights
from heterofl_flwr.stages.chain_checks import Kind, check_chain, overrides
from heterofl_flwr.stages.client_stage import Fields, State, write_stages
from heterofl_flwr.stages.conversation import Conversation, Questions
from heterofl_flwr.stages.server_stage import RoundContext, ServerStage, Update, stage_name


class Chain:
    """The server stages of a run, and the mean of the updates.

    Each round opens the chain, adds updates and closes the chain.

    Attributes
    ----------
    summing
        Stage that sums the replies itself, as in secure aggregation, or None.
    broadcast
        Tensors that are sent to clients with the model, named ``client stage/parameter``.
    instruction
        Config entries that describe the client stages.
    """

    def __init__(
        self,
        stages: Iterable[ServerStage],
        aggregator: OpenAggregator = CountingMean,
        kind: Kind = "counting",
        *,
        weights: Weights = "equal",
        norm_bound: float = 0.0,
    ) -> None:
        # A conversation masks updates, so on clients all other stages come before it.
        self.stages = tuple(sorted(stages, key=lambda stage: isinstance(stage, Conversation)))
        self._open_aggregator, self._norm_bound = aggregator, norm_bound
        check_chain(self.stages, aggregator, kind, weights)
        self.summing = next((stage for stage in self.stages if isinstance(stage, Conversation)), None)
        self._aggregation: Aggregation  # exists from open to close
        self._context: RoundContext
        self.broadcast: State = {}
        self.instruction: Fields = {}

    @property
    def excluded(self) -> dict[int, str]:
        """Reasons why secure aggregation has excluded clients, by client id."""
        return dict(self.summing.excluded) if self.summing else {}

    @property
    def skipped(self) -> bool:
        """Whether ``summing`` leaves the model unchanged in this round."""
        return self.summing is not None and self.summing.skipped

    @property
    def fewest_replies(self) -> int:
        """Minimum number of replies that ``summing`` needs to change the model; 0 without ``summing``."""
        return self.summing.fewest_replies if self.summing else 0

    def open(self, context: RoundContext, *, default_norm_bound: float = 0.0) -> None:
        """Begin a round.

        ``default_norm_bound`` is the upper bound on the L2 norm of a client's change; in secure aggregation, of the
        mean change. It does not apply if the chain has a ``norm_bound``, or a stage with ``Needs(changes=True)``.
        """
        state, norm_bound = context.state, self._norm_bound
        sums_changes = any(stage.needs.changes for stage in self.stages)
        if not norm_bound and not sums_changes:
            norm_bound = default_norm_bound
        if sums_changes:  # expanded zeros take no memory
            state = {name: old.new_zeros((), dtype=torch.float64).expand_as(old) for name, old in state.items()}
        self._context = replace(context, norm_bound=0.0 if sums_changes else norm_bound)
        halves = [(stage, client) for stage in self.stages if (client := stage.client()) is not None]
        self.instruction = write_stages([client for _, client in halves]) if halves else {}
        self.broadcast = {
            f"{client.registered_name}/{name}": tensor
            for stage, client in halves
            for name, tensor in _check_broadcast(stage, context).items()
        }
        open_aggregator = self.summing.open_aggregator if self.summing else self._open_aggregator
        self._aggregation = Aggregation(
            state,
            context.rows,
            aggregator=open_aggregator,
            extra_rows=context.extra_rows,
            largest=LARGEST_ENTRY,
            norm_bound=norm_bound,
        )

    def before(self, clients: Mapping[int, Update]) -> Questions[Mapping[int, Fields]]:
        """Yield the queries of ``summing`` before training; return extra config entries for each client."""
        return (yield from self.summing.before(clients, self._context)) if self.summing else {}

    def after(self) -> Questions[None]:
        """Yield the queries of ``summing`` after all replies have been added."""
        if self.summing:
            yield from self.summing.after(self._context)

    def add(self, update: Update) -> None:
        """Pass a client's update through the stages to the mean; raise ``ReplyError`` if the update is invalid."""
        stages: list[ServerStage] = [stage for stage in reversed(self.stages) if overrides(stage, "on_reply")]
        if self.summing:
            stages = [self.summing]
        context = self._context
        reads = stages or any(overrides(stage, "on_added") for stage in self.stages)
        if reads and update.version is not None:
            context = replace(context, state=update.version.state)
        for stage in stages:
            update = check_returned(Update, stage.on_reply(update, context), f"{stage_name(stage)}.on_reply")
        equal = [stage_name(stage) for stage in self.stages if stage.needs.equal_weights]
        if equal and update.weight not in (0, 1):
            raise ConfigError(
                f"{', '.join(equal)} needs a mean in which each client counts once; found a reply to which a stage "
                f"gave the weight {update.weight:g}, expected 1"
            )
        self._aggregation.add(
            update.plan, update.tensors, labels=update.labels, weight=update.weight, sent=update.version
        )
        for stage in self.stages:
            if update.weight and overrides(stage, "on_added"):
                stage.on_added(update, context)

    @property
    def replies(self) -> int:
        """Number of valid updates in this round, including those of weight 0."""
        return self._aggregation.replies

    def close(self) -> State:
        """End the round; return the new model: the mean, as changed by the stages."""
        holders, new = self._aggregation.holders, self._aggregation.result()
        for stage in self.stages:
            if not overrides(stage, "on_mean"):
                continue
            source = f"{stage_name(stage)}.on_mean"
            new = check_returned(dict, stage.on_mean(new, holders, self._context), source)
            check_model(new, self._context.state, source)
        del self._aggregation, self._context
        self.broadcast = {}
        return new

    def evaluated(self, state: State) -> State:
        """Return the model to evaluate and save: ``state``, as changed by the stages."""
        for stage in self.stages:
            if overrides(stage, "evaluated"):
                source, trained = f"{stage_name(stage)}.evaluated", state
                state = check_returned(dict, stage.evaluated(trained), source)
                check_model(state, trained, source)
        return state

    def level_tensors(self, rate: float) -> State:
        """Return the parameters in ``Slicing.by_level`` at the level of ``rate``; {} if equal to the global model's."""
        return {name: tensor for stage in self.stages for name, tensor in stage.level_tensors(rate).items()}

    def metrics(self) -> dict[str, float]:
        """Return the stages' metrics for a round as floats.

        Raise ``ConfigError`` if a metric is no number, or if two stages have a metric of the same name.
        """
        metrics: dict[str, float] = {}
        for stage in self.stages:
            for key, value in stage.metrics().items():
                source = f"{stage_name(stage)}.metrics, under {key!r},"
                if key in metrics:
                    raise ConfigError(f"{source} returned a metric of another stage; expected another name")
                metrics[key] = _to_float(value, source)
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Return the stages' tensors for a checkpoint, named ``stage/name``."""
        return {
            f"{stage_name(stage)}/{key}": check_returned(Tensor, tensor, f"{stage_name(stage)}.state, under {key!r},")
            for stage in self.stages
            for key, tensor in stage.state().items()
        }

    def reorder(self, apply: Callable[[str, Tensor], Tensor], shapes: Mapping[str, torch.Size]) -> None:
        """Permute the channels of stage tensors that have the name and shape of a parameter.

        ``apply(name, tensor)`` returns ``tensor`` permuted in the same way as the parameter ``name``.
        """
        for stage in self.stages:
            if tensors := {key: (key.rpartition("/")[2], tensor) for key, tensor in stage.state().items()}:
                stage.load({
                    key: apply(name, tensor) if shapes.get(name) == tensor.shape else tensor
                    for key, (name, tensor) in tensors.items()
                })  # fmt: skip

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of ``state()``; an empty mapping begins a new run.

        Raise ``ConfigError`` if ``state`` has tensors of a stage that the chain lacks.
        """
        names = [stage_name(stage) for stage in self.stages]
        unknown = [key for key in state if not key.startswith(tuple(f"{name}/" for name in names))]
        if stages := sorted({key.partition("/")[0] for key in unknown}):
            raise ConfigError(
                f"resume has the state of {', '.join(stages)}, and the stages of this strategy are "
                f"{', '.join(names) or 'none'}: expected the stages that the run began with, or a new run with the "
                f"model of the old run (initial_arrays)"
            )
        for stage in self.stages:
            stage.load(entries_under(f"{stage_name(stage)}/", state))


def _check_broadcast(stage: ServerStage, context: RoundContext) -> Mapping[str, Tensor]:
    """Return a stage's broadcast. Raise ``ConfigError`` unless each tensor has the name and shape of a parameter."""
    tensors = stage.broadcast(context)
    for name, tensor in tensors.items():
        if name not in context.state or tensor.shape != context.state[name].shape:
            raise ConfigError(
                f"{stage_name(stage)}.broadcast: {name} is {tuple(tensor.shape)}; expected the name and shape of a "
                f"parameter"
            )
    return tensors


def _to_float(value: SupportsFloat, source: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{source} returned {type(value).__name__}; expected a number") from error
