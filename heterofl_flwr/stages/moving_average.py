"""MovingAverage: evaluate and keep an average of the server's models, beside the one that is trained."""

from collections.abc import Mapping

import torch
from torch import Tensor

from heterofl_flwr.errors import DECAY, ConfigError, is_decay
from heterofl_flwr.stages.stage import Held, RoundContext, Stage, State


class MovingAverage(Stage):
    """Average the models of all rounds, later ones more: ``average = decay * average + (1 - decay) * model``.

    Clients train the last model as without this stage; what is evaluated, kept and exported is the average. It begins
    with the model after the first round. Entries that no client held in a round do not move in it.
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not is_decay(decay):
            raise ConfigError(f"MovingAverage: decay is {decay!r}, expected {DECAY}")
        self.decay = decay
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
