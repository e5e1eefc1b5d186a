"""Clip and Noise: a bound on the L2 norm of a client's change, and client-level differential privacy."""

from collections.abc import Mapping
from dataclasses import replace

from heterofl_flwr.common.options import Positive, group
from heterofl_flwr.core.check_reply import LARGEST_ENTRY, check_reply
from heterofl_flwr.core.clipping import clipped, in_steps
from heterofl_flwr.core.gaussian_noise import released
from heterofl_flwr.stages.client_stage import ClientContext, ClientStage, Outgoing, State, client_stage
from heterofl_flwr.stages.privacy_accountant import TRAINING, Privacy, Spent
from heterofl_flwr.stages.server_stage import HolderCounts, Needs, RoundContext, ServerStage, Update


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


class Noise(Clip):
    """Differential privacy: sum clipped changes in fixed point, and add noise."""

    needs = Needs(changes=True, counting_mean=True, equal_weights=True)

    def __init__(self, privacy: Privacy, spent: Spent) -> None:
        super().__init__(privacy.clip)
        self.step, self.spent = privacy.step, spent

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Return the update with the client's change instead of its parameters, clipped and in units of ``step``."""
        check_reply(context.state, update.plan, update.tensors, update.weight, LARGEST_ENTRY)
        before = update.plan.extract(context.state)
        changes = {name: tensor.double() - before[name] for name, tensor in update.tensors.items()}
        return replace(update, tensors=in_steps(changes, self.clip, self.step))

    def on_mean(self, new: State, holders: HolderCounts, context: RoundContext) -> State:
        """Return the previous model plus the noisy mean change, and count one release."""
        moved = released(context.state, new, holders, self.step)
        self.spent.add(TRAINING)
        return moved

    def metrics(self) -> Mapping[str, float]:
        """Return epsilon, delta and the number of releases so far."""
        return self.spent.metrics()
