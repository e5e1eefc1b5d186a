"""Nesterov: server momentum that looks ahead, as ``nesterov=True`` of ``torch.optim.SGD``."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from heterofl_flwr.errors import DECAY, ConfigError, is_decay
from heterofl_flwr.stages.stage import Held, Needs, RoundContext, Stage, State


class Nesterov(Stage):
    """``velocity = momentum * velocity + change``; the step is ``learning_rate * (change + momentum * velocity)``.

    An entry that nobody held in a round keeps still in it, and so does its velocity.
    """

    needs = Needs(steps=True)

    def __init__(self, momentum: float = 0.9, learning_rate: float = 1.0) -> None:
        if not is_decay(momentum):
            raise ConfigError(f"Nesterov: momentum is {momentum!r}, expected {DECAY}")
        if not 0 < learning_rate < math.inf:
            raise ConfigError(f"Nesterov: learning_rate is {learning_rate!r}, expected a number over 0")
        self.momentum, self.learning_rate = momentum, learning_rate
        self._velocity: State = {}

    @torch.no_grad()
    def on_mean(self, new: State, held: Held, context: RoundContext) -> State:
        """Return the model after the step."""
        for name, mean in new.items():
            before, somebody = context.state[name], held(name) > 0
            change = mean - before
            kept = self._velocity.get(name, torch.zeros_like(change))
            self._velocity[name] = velocity = torch.where(somebody, self.momentum * kept + change, kept)
            step = self.learning_rate * (change + self.momentum * velocity)
            new[name] = torch.where(somebody, before + step, before)
        return new

    def state(self) -> Mapping[str, Tensor]:
        """Return the velocity."""
        return self._velocity

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with this velocity."""
        self._velocity = dict(state)
