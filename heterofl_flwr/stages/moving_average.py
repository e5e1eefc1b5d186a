"""MovingAverage: evaluate and keep an average of the server's models, beside the one that is trained."""

import torch

from heterofl_flwr.common.options import Decay, with_options
from heterofl_flwr.stages.stage import Held, KeepingStage, RoundContext, State


@with_options
class MovingAverage(KeepingStage):
    """Average the models of all rounds, later ones more: ``average = decay * average + (1 - decay) * model``.

    Clients train the last model as without this stage; what is evaluated, kept and exported is the average. It begins
    with the model after the first round. Entries that no client held in a round do not move in it.
    """

    decay: Decay = 0.9
    """how much of the average is kept from round to round"""

    @torch.no_grad()
    def on_mean(self, new: State, held: Held, context: RoundContext) -> State:
        """Move the average towards the new model, which stays as it is."""
        del context
        for name, own in new.items():
            before = self.kept.get(name, own)
            self.kept[name] = torch.where(held(name) > 0, before.lerp(own, 1 - self.decay), before)
        return new

    def evaluated(self, state: State) -> State:
        """Return the average; before the first round the model itself."""
        return dict(self.kept) or state
