"""Noise: client-level differential privacy."""

from collections.abc import Mapping
from dataclasses import replace

from heterofl_flwr.core.check_reply import LARGEST_ENTRY, check_reply
from heterofl_flwr.core.clipping import in_steps
from heterofl_flwr.core.gaussian_noise import released
from heterofl_flwr.stages.client_stage import State
from heterofl_flwr.stages.clip import Clip
from heterofl_flwr.stages.privacy_accountant import TRAINING, Privacy, Spent
from heterofl_flwr.stages.server_stage import HolderCounts, Needs, RoundContext, Update


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
