"""Nesterov: server momentum that looks ahead, as ``nesterov=True`` of ``torch.optim.SGD``."""

from torch import Tensor

from heterofl_flwr.groups import Decay, Positive, with_options
from heterofl_flwr.stages.server_optimizer import FIRST, Kept, ServerOptimizer


@with_options
class Nesterov(ServerOptimizer):
    """``velocity = momentum * velocity + change``; the step is ``learning_rate * (change + momentum * velocity)``."""

    name = "Nesterov"
    momentum: Decay = 0.9
    """how much of the velocity is kept from round to round"""
    learning_rate: Positive = 1.0
    """what the step is multiplied by"""

    def _step(self, change: Tensor, kept: Kept, _: int) -> tuple[Tensor, Kept]:
        velocity = self.momentum * kept[FIRST] + change
        return self.learning_rate * (change + self.momentum * velocity), {FIRST: velocity}
