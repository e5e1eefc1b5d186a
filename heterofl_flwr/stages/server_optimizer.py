"""Server optimisers, which step along the mean change of a round, and a moving average of the global model.

The optimisers' formulas are those of Flower (Hsu et al., 2019; Reddi et al., 2020), except in ``Nesterov``. If no
client of a round holds an entry, the entry keeps its value, its moments and its average.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from heterofl_flwr.common.options import Decay, Positive, with_options
from heterofl_flwr.stages.client_stage import State
from heterofl_flwr.stages.server_stage import HolderCounts, Needs, RoundContext, StatefulStage

FIRST, SECOND = "first", "second"
"""Name prefixes of a parameter's moments."""

Moments = Mapping[str, Tensor]
"""Moments of one parameter by ``FIRST`` and ``SECOND``. ``_step`` returns only the moments that it uses."""


class ServerOptimizer(StatefulStage):
    """Base class of server optimisers; a subclass implements ``_step``."""

    needs = Needs(steps=True)

    @abstractmethod
    def _step(self, change: Tensor, moments: Moments, server_round: int) -> tuple[Tensor, Moments]:
        """Return a parameter's step and its new moments. Before the first step, all moments are 0."""

    @torch.no_grad()
    def on_mean(self, new: State, holders: HolderCounts, context: RoundContext) -> State:
        """Return the global model after the step. ``new`` is overwritten."""
        for name, mean in new.items():
            old = context.state[name]
            change = mean - old
            zero = change.new_zeros(())
            moments = {kind: self.tensors.get(f"{kind}/{name}", zero) for kind in (FIRST, SECOND)}
            step, updated = self._step(change, moments, context.server_round)
            trained = holders(name) > 0
            new[name] = torch.where(trained, old + step, old)
            for kind, tensor in updated.items():
                self.tensors[f"{kind}/{name}"] = torch.where(trained, tensor, moments[kind])
        return new


@with_options
class Momentum(ServerOptimizer):
    """Momentum on the server, as Flower's ``FedAvgM``."""

    server_momentum: Decay = 0.0
    """decay of the velocity from round to round"""
    server_learning_rate: Positive = 1.0
    """learning rate of the server: factor of the step"""

    def _step(self, change: Tensor, moments: Moments, _: int) -> tuple[Tensor, Moments]:
        if not self.server_momentum:
            return self.server_learning_rate * change, {}
        velocity = self.server_momentum * moments[FIRST] + change
        return self.server_learning_rate * velocity, {FIRST: velocity}


@with_options
class Nesterov(ServerOptimizer):
    """Nesterov momentum on the server, as ``torch.optim.SGD(nesterov=True)``."""

    momentum: Decay = 0.9
    """decay of the velocity from round to round"""
    learning_rate: Positive = 1.0
    """learning rate of the server: factor of the step"""

    def _step(self, change: Tensor, moments: Moments, _: int) -> tuple[Tensor, Moments]:
        velocity = self.momentum * moments[FIRST] + change
        return self.learning_rate * (change + self.momentum * velocity), {FIRST: velocity}


@with_options
class Adagrad(ServerOptimizer):
    """Adagrad on the server, as Flower's ``FedAdagrad``."""

    eta: Positive = 1e-1
    """learning rate of the server"""
    tau: Positive = 1e-3
    """constant added to the root of the second moment; larger values make steps less adaptive"""

    def _step(self, change: Tensor, moments: Moments, _: int) -> tuple[Tensor, Moments]:
        second = moments[SECOND] + change**2
        return self.eta * change / (second.sqrt() + self.tau), {SECOND: second}


@with_options
class Adam(ServerOptimizer):
    """Adam on the server, as Flower's ``FedAdam``.

    The bias correction depends on the number of the round, not on how often an entry was trained.
    """

    eta: Positive = 1e-1
    """learning rate of the server"""
    beta_1: Decay = 0.9
    """decay of the first moment from round to round"""
    beta_2: Decay = 0.99
    """decay of the second moment from round to round"""
    tau: Positive = 1e-3
    """constant added to the root of the second moment; larger values make steps less adaptive"""

    def _step(self, change: Tensor, moments: Moments, server_round: int) -> tuple[Tensor, Moments]:
        mean = self.beta_1 * moments[FIRST] + (1 - self.beta_1) * change
        second = self.beta_2 * moments[SECOND] + (1 - self.beta_2) * change**2
        correction = math.sqrt(1 - self.beta_2 ** (server_round + 1)) / (1 - self.beta_1 ** (server_round + 1))
        return self.eta * correction * mean / (second.sqrt() + self.tau), {FIRST: mean, SECOND: second}


@with_options
class Yogi(Adam):
    """Yogi on the server, without Adam's bias correction, as Flower's ``FedYogi``."""

    eta: Positive = 1e-2

    def _step(self, change: Tensor, moments: Moments, _: int) -> tuple[Tensor, Moments]:
        square = change**2
        mean = self.beta_1 * moments[FIRST] + (1 - self.beta_1) * change
        second = moments[SECOND] - (1 - self.beta_2) * square * torch.sign(moments[SECOND] - square)
        return self.eta * mean / (second.sqrt() + self.tau), {FIRST: mean, SECOND: second}


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
