"""MovingAverage: evaluate and keep an average of the server's models, beside the one that is trained."""

from collections.abc import Mapping

import torch
from torch import Tensor

from heterofl_flwr.option_groups import Decay, with_options
from heterofl_flwr.stages.stage import Held, RoundContext, Stage, State


@with_options
class MovingAverage(Stage):
    """Average the models of all rounds, later ones more: ``average = decay * average + (1 - decay) * model``.

    Clients train the last model as without this stage; what is evaluated, kept and exported is the average. It begins
    with the model after the first round. Entries that no client held in a round do not move in it.
    """

    decay: Decay = 0.9
    """how much of the average is kept from round to round"""

    def __post_init__(self) -> None:
        self._average: State = {}

    @torch.no_grad()
    def on_mean(self, new: State, held: Held, context: RoundContext) -> State:
        """Move the average towards the new model, which stays as it is."""
        del context
        for name, own in new.items():
            before = self._average.get(name, own)
            self._average[name] = torch.where(held(name) > 0, before.lerp(own, 1 - self.decay), before)
        return new

    def evaluated(self, state: State) -> State:
        """Return the average; before the first round the model itself."""
        return dict(self._average) or state

    def state(self) -> Mapping[str, Tensor]:
        """Return the average."""
        return self._average

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from an average."""
        self._average = dict(state)
