"""Parameters that some levels do not train, or that each level averages alone (NeFL, Kang et al., 2023)."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from heterofl_flwr.common.named_tensors import entries_under
from heterofl_flwr.core.aggregation import Aggregation
from heterofl_flwr.core.exchanged import is_shared
from heterofl_flwr.core.label_rows import LabelRows
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.stages.client_stage import State
from heterofl_flwr.stages.server_stage import HolderCounts, Needs, RoundContext, ServerStage, StatefulStage, Update


def trained_plan(update: Update, context: RoundContext) -> Plan:
    """Return a client's plan without the parameters that it does not train."""
    return update.plan.without(context.untrained(update.rate))


class Untrained(ServerStage):
    """Average each parameter only over the clients that train it."""

    reads_replies = False

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Remove from the update the parameters that its client does not train."""
        if not context.untrained(update.rate):
            return update
        plan = trained_plan(update, context)
        return replace(update, plan=plan, tensors={name: update.tensors[name] for name in plan.axes})


class LevelParameters(StatefulStage):
    """Stage that averages the parameters named by ``patterns`` (``fnmatch``) separately for each level."""

    needs = Needs(counting_mean=True)

    def __init__(self, patterns: Sequence[str]) -> None:
        super().__init__()
        self._patterns = tuple(patterns)
        self._context: RoundContext | None = None
        self._levels: dict[float, Aggregation] = {}

    def level_tensors(self, rate: float) -> State:
        """Return a level's means of the stage's parameters; {} for the largest level, and for a level without means."""
        return entries_under(f"{rate}/", self.tensors)

    def on_added(self, update: Update, context: RoundContext) -> None:
        """Add a client's values of the stage's parameters to the mean over the clients of its level."""
        levels = self._levels_of(context)
        plan = Plan({name: axes for name, axes in update.plan.axes.items() if is_shared(name, self._patterns)})
        if update.rate not in levels:
            start = {**plan.extract(context.state), **self.level_tensors(update.rate)}
            levels[update.rate] = Aggregation(start, [name for name in context.rows if name in start])
        tensors: dict[str, Tensor] = {name: update.tensors[name] for name in plan.axes}
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        # As in the mean of all: by heads and sizes that may not be among this stage's parameters.
        rows = LabelRows(context.state, context.rows, extra_rows=context.extra_rows).by_name(plan, update.labels)
        labels = {name: index.tolist() for name, index in rows.items()}
        levels[update.rate].add(Plan.between(shapes, shapes), tensors, labels=labels or None, weight=update.weight)

    def on_mean(self, new: State, holders: HolderCounts, context: RoundContext) -> State:
        """Return ``new`` with the largest level's means of the stage's parameters; store the smaller levels' means.

        If no client of the largest level has replied, these parameters keep their old values.
        """
        means = {rate: level.result() for rate, level in self._levels_of(context).items()}
        self._context, self._levels = None, {}
        largest = means.pop(context.global_rate, {})
        smaller = {f"{rate}/{name}": tensor for rate, mean in means.items() for name, tensor in mean.items()}
        self.tensors = {**self.tensors, **smaller}
        old = {name: context.state[name] for name in new if is_shared(name, self._patterns)}
        return {**new, **old, **largest}

    def _levels_of(self, context: RoundContext) -> dict[float, Aggregation]:
        """Return this round's means by rate; drop the means of an earlier round that failed."""
        if context is not self._context:
            self._context, self._levels = context, {}
        return self._levels
