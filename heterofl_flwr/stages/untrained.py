"""``Untrained``: a stage that leaves out of the mean the parameters that a client does not train."""

from dataclasses import replace

from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.stages.server_stage import RoundContext, ServerStage, Update


def trained_plan(update: Update, context: RoundContext) -> Plan:
    """Return a client's plan without the parameters that clients of its rate do not train."""
    untrained = context.untrained(update.rate)
    return Plan({name: axes for name, axes in update.plan.axes.items() if name not in untrained})


class Untrained(ServerStage):
    """Average only the parameters that a client trains; untrained ones would pull the mean towards the old values."""

    reads_replies = False

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Remove from the update the parameters that clients of its rate do not train."""
        if not context.untrained(update.rate):
            return update
        plan = trained_plan(update, context)
        return replace(update, plan=plan, tensors={name: update.tensors[name] for name in plan.axes})
