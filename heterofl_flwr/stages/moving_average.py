"""MovingAverage: evaluate and save an average of the models of all rounds."""

import torch

from heterofl_flwr.common.options import Decay, with_options
from heterofl_flwr.stages.client_stage import State
from heterofl_flwr.stages.server_stage import HolderCounts, RoundContext, StatefulStage


@with_options
class MovingAverage(StatefulStage):
    """Exponential average of the models of all rounds: ``average = decay * average + (1 - decay) * model``.

    The average is evaluated, saved and exported. It does not change training. It starts with the model after the first
    round. Entries that no client holds in a round keep their average.
    """

    decay: Decay = 0.9
    """weight of the previous average"""

    @torch.no_grad()
    def on_mean(self, new: State, holders: HolderCounts, context: RoundContext) -> State:
        """Update the average; return the model unchanged."""
        for name, tensor in new.items():
            average = self.tensors.get(name, tensor)
            self.tensors[name] = torch.where(holders(name) > 0, average.lerp(tensor, 1 - self.decay), average)
        return new

    def evaluated(self, state: State) -> State:
        """Return the average. Before the first round there is none, and the result is ``state``."""
        return dict(self.tensors) or state
