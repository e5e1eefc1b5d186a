"""``Untrained``: a stage that leaves untrained parameters out of the mean."""

from dataclasses import replace

from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.stages.server_stage import RoundContext, ServerStage, Update


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
