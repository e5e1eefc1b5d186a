"""Clip: bound the L2 norm of a client's change (trained minus received parameters)."""

from dataclasses import replace

from heterofl_flwr.common.options import Positive, group
from heterofl_flwr.core.check_reply import LARGEST_ENTRY, check_reply
from heterofl_flwr.core.clipping import clipped
from heterofl_flwr.stages.client_stage import ClientContext, ClientStage, Outgoing, client_stage
from heterofl_flwr.stages.server_stage import RoundContext, ServerStage, Update


@client_stage("clip")
@group
class ClientClip(ClientStage):
    """The client half of ``Clip``."""

    bound: Positive
    """upper bound on the L2 norm of the change of the client's slice"""

    def on_update(self, update: Outgoing, context: ClientContext) -> Outgoing:
        """Return the update with the client's change clipped."""
        return replace(update, tensors=clipped(context.received(), update.tensors, self.bound))


class Clip(ServerStage):
    """Bound the L2 norm of a client's change, on the client and again on the server."""

    reads_replies = False

    def __init__(self, clip: float) -> None:
        self.clip = clip

    def client(self) -> ClientStage:
        """Return the client half of this stage."""
        return ClientClip(bound=float(self.clip))

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Return the update with the change clipped, because the client may not have clipped it."""
        check_reply(context.state, update.plan, update.tensors, update.weight, LARGEST_ENTRY)
        return replace(update, tensors=clipped(update.plan.extract(context.state), update.tensors, self.clip))
