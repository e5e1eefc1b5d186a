"""Labels: which rows of the classifier count in the mean, where not those of the classes that a client names."""

from collections.abc import Sequence
from dataclasses import replace

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.reply_checks import check_reply, trained_rows
from heterofl_flwr.stages.stage import RoundContext, Stage, Update


class AllRows(Stage):
    """Let all rows of the classifier count, whatever classes a client names (``labels="none"``)."""

    reads_replies = False

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Drop the classes."""
        return replace(update, labels=None)


class TrainedRows(Stage):
    """Let the rows count that a client has trained, which the server sees from the reply (``labels="inferred"``)."""

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Name the classes whose rows are not just shrunk copies of those that were sent."""
        return replace(update, labels=self._trained(update, context))

    def _trained(self, update: Update, context: RoundContext) -> Sequence[int] | None:
        """Return the classes; None where the slice has no rows of classes, or only some."""
        plan, untrained = update.plan, context.untrained(update.rate)
        rows = {name: plan.axes[name] for name in context.rows if name in plan.axes and name not in untrained}
        if not rows or any(axes[0].kept < axes[0].full for axes in rows.values()):
            return None
        check_reply(context.state, plan, update.tensors, update.weight)
        sent = Plan(rows).extract(context.state)
        # Clients begin with what their model holds of it, which in bfloat16 is rounded.
        before = {name: own.to(context.model.get_parameter(name).dtype) for name, own in sent.items()}
        return trained_rows(before, update.tensors, min(axes[0].kept for axes in rows.values()))
