"""Server optimisers: from the old global state along what a round's counting mean changes.

Formulas, options and defaults are those of Flower's ``FedAvgM``, ``FedAdagrad``, ``FedAdam`` and ``FedYogi`` (Hsu et
al., 2019; Reddi et al., 2020). One thing is added: an entry that nobody held in a round does not move, and what the
optimiser keeps of it stays.
"""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from heterofl_flwr.common.options import Decay, Positive, with_options
from heterofl_flwr.stages.stage import Held, KeepingStage, Needs, RoundContext, State

FIRST, SECOND = "first", "second"
"""The moments that an optimiser keeps of a parameter."""

Kept = Mapping[str, Tensor]
"""The first and second moment of one parameter."""


class ServerOptimizer(KeepingStage):
    """A step of the global model along what the mean of a round changes; a subclass says which by ``_step``."""

    needs = Needs(steps=True)

    @abstractmethod
    def _step(self, change: Tensor, kept: Kept, server_round: int) -> tuple[Tensor, Kept]:
        """Return the step of a parameter and its new moments, from the mean's change and the moments; 0 at first."""

    @torch.no_grad()
    def on_mean(self, new: State, held: Held, context: RoundContext) -> State:
        """Return the model after the step; ``new`` is replaced parameter by parameter, to hold no model twice."""
        for name, mean in new.items():
            old = context.state[name]
            change = mean - old
            known = {kind: own for kind in (FIRST, SECOND) if (own := self.kept.get(f"{kind}/{name}")) is not None}
            before = defaultdict(partial(torch.zeros_like, change), known)
            step, after = self._step(change, before, context.server_round)
            trained = held(name) > 0
            new[name] = torch.where(trained, old + step, old)
            for kind, tensor in after.items():
                self.kept[f"{kind}/{name}"] = torch.where(trained, tensor, before[kind])
        return new


@with_options
class Momentum(ServerOptimizer):
    """Momentum of the global model, as Flower's ``FedAvgM``."""

    server_momentum: Decay = 0.0
    """how much of the velocity is kept from round to round"""
    server_learning_rate: Positive = 1.0
    """what the step is multiplied by"""

    def _step(self, change: Tensor, kept: Kept, _: int) -> tuple[Tensor, Kept]:
        if not self.server_momentum:
            return self.server_learning_rate * change, {}
        velocity = self.server_momentum * kept[FIRST] + change
        return self.server_learning_rate * velocity, {FIRST: velocity}


@with_options
class Nesterov(ServerOptimizer):
    """Momentum that looks ahead, as ``nesterov=True`` of ``torch.optim.SGD``.

    ``velocity = momentum * velocity + change``; the step is ``learning_rate * (change + momentum * velocity)``.
    """

    momentum: Decay = 0.9
    """how much of the velocity is kept from round to round"""
    learning_rate: Positive = 1.0
    """what the step is multiplied by"""

    def _step(self, change: Tensor, kept: Kept, _: int) -> tuple[Tensor, Kept]:
        velocity = self.momentum * kept[FIRST] + change
        return self.learning_rate * (change + self.momentum * velocity), {FIRST: velocity}


@with_options
class Adagrad(ServerOptimizer):
    """Adagrad on the server, as Flower's ``FedAdagrad``."""

    eta: Positive = 1e-1
    """learning rate of the server"""
    tau: Positive = 1e-3
    """what is added to the root of the second moment: the larger, the less the steps adapt"""

    def _step(self, change: Tensor, kept: Kept, _: int) -> tuple[Tensor, Kept]:
        second = kept[SECOND] + change**2
        return self.eta * change / (second.sqrt() + self.tau), {SECOND: second}


@with_options
class Adam(ServerOptimizer):
    """Adam on the server, as Flower's ``FedAdam``, whose bias correction counts the run's rounds."""

    eta: Positive = 1e-1
    """learning rate of the server"""
    beta_1: Decay = 0.9
    """how much of the first moment is kept from round to round"""
    beta_2: Decay = 0.99
    """how much of the second moment is kept from round to round"""
    tau: Positive = 1e-3
    """what is added to the root of the second moment: the larger, the less the steps adapt"""

    def _step(self, change: Tensor, kept: Kept, server_round: int) -> tuple[Tensor, Kept]:
        first = self.beta_1 * kept[FIRST] + (1 - self.beta_1) * change
        second = self.beta_2 * kept[SECOND] + (1 - self.beta_2) * change**2
        correction = math.sqrt(1 - self.beta_2 ** (server_round + 1)) / (1 - self.beta_1 ** (server_round + 1))
        return self.eta * correction * first / (second.sqrt() + self.tau), {FIRST: first, SECOND: second}


@with_options
class Yogi(Adam):
    """Yogi on the server, as Flower's ``FedYogi``: the options of ``Adam``, another second moment, no correction."""

    eta: Positive = 1e-2

    def _step(self, change: Tensor, kept: Kept, _: int) -> tuple[Tensor, Kept]:
        square = change**2
        first = self.beta_1 * kept[FIRST] + (1 - self.beta_1) * change
        second = kept[SECOND] - (1 - self.beta_2) * square * torch.sign(kept[SECOND] - square)
        return self.eta * first / (second.sqrt() + self.tau), {FIRST: first, SECOND: second}
