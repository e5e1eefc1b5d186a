"""Untrained: leave out of the mean what a client holds and does not train."""

from dataclasses import replace

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.stages.stage import RoundContext, Stage, Update


class Untrained(Stage):
    """Count a client in the parameters that it trains alone: its copies of the others would hold back those who do."""

    reads_replies = False

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Drop the parameters that clients of this rate do not train."""
        untrained = context.untrained(update.rate)
        if not untrained:
            return update
        axes = {name: own for name, own in update.plan.axes.items() if name not in untrained}
        return replace(update, plan=Plan(axes), tensors={name: update.tensors[name] for name in axes})
