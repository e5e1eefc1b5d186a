"""Noise: differential privacy of whole clients, by noise on the mean of clipped changes."""

from collections.abc import Mapping
from dataclasses import replace

from heterofl_flwr.core.differential_privacy import in_steps, released
from heterofl_flwr.core.reply_checks import LARGEST_ENTRY, check_reply
from heterofl_flwr.stages.clip import Clip
from heterofl_flwr.stages.privacy import TRAINING, Privacy, Spent
from heterofl_flwr.stages.stage import Held, Needs, RoundContext, State, Update


class Noise(Clip):
    """Sum clipped changes in whole steps of a grid; the noise on each entry fits the number of its holders."""

    needs = Needs(changes=True, counting_mean=True, equal_weights=True)

    def __init__(self, privacy: Privacy, spent: Spent) -> None:
        super().__init__(privacy.clip)
        self.step, self.spent = privacy.step, spent

    def on_reply(self, update: Update, context: RoundContext) -> Update:
        """Return the change in whole steps, no longer than the bound."""
        check_reply(context.state, update.plan, update.tensors, update.weight, LARGEST_ENTRY)
        before = update.plan.extract(context.state)
        changes = {name: own.double() - before[name] for name, own in update.tensors.items()}
        return replace(update, tensors=in_steps(changes, self.clip, self.step))

    def on_mean(self, new: State, held: Held, context: RoundContext) -> State:
        """Return the model of the round before, moved by the mean change with noise on it; it counts as released."""
        moved = released(context.state, new, held, self.step)
        self.spent.add(TRAINING)
        return moved

    def facts(self) -> Mapping[str, float]:
        """Return what the run has given away so far."""
        return self.spent.facts()
