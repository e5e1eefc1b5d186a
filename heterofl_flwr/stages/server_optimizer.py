"""Server optimisers: from the old global state along what a round's counting mean changes.

Formulas, options and defaults are those of Flower's ``FedAvgM``, ``FedAdagrad``, ``FedAdam`` and ``FedYogi`` (Hsu et
al., 2019; Reddi et al., 2020). One thing is added: an entry that nobody held in a round does not move, and what the
optimiser keeps of it stays.
"""

import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from heterofl_flwr.errors import DECAY, check_fields, is_decay
from heterofl_flwr.stages.stage import Held, Needs, RoundContext, Stage, State

FIRST, SECOND = "first", "second"
"""The moments that an optimiser keeps of a parameter."""

Kept = Mapping[str, Tensor]
"""The first and second moment of one parameter."""

POSITIVE = "a number over 0"


@dataclass(kw_only=True)
class ServerOptimizer(Stage):
    """A step of the global model along what the mean of a round changes; a subclass says which by ``_step``."""

    name = "ServerOptimizer"
    needs = Needs(steps=True)
    kept: State = field(default_factory=dict, init=False, repr=False, compare=False)

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

    def state(self) -> Mapping[str, Tensor]:
        """Return the moments."""
        return self.kept

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with these moments."""
        self.kept = dict(state)


@dataclass(kw_only=True)
class Momentum(ServerOptimizer):
    """Momentum of the global model, as Flower's ``FedAvgM``.

    Attributes
    ----------
    server_learning_rate
        What the step is multiplied by.
    server_momentum
        How much of the velocity is kept from round to round.
    """

    server_learning_rate: float = 1.0
    server_momentum: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            (
                ("server_learning_rate", 0 < self.server_learning_rate < math.inf, POSITIVE),
                ("server_momentum", is_decay(self.server_momentum), DECAY),
            ),
        )

    def _step(self, change: Tensor, kept: Kept, _: int) -> tuple[Tensor, Kept]:
        if not self.server_momentum:
            return self.server_learning_rate * change, {}
        velocity = self.server_momentum * kept[FIRST] + change
        return self.server_learning_rate * velocity, {FIRST: velocity}


@dataclass(kw_only=True)
class Adagrad(ServerOptimizer):
    """Adagrad on the server, as Flower's ``FedAdagrad``.

    Attributes
    ----------
    eta
        Learning rate of the server.
    tau
        What is added to the root of the second moment: the larger, the less the steps adapt.
    """

    eta: float = 1e-1
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check_adaptive(self)

    def _step(self, change: Tensor, kept: Kept, _: int) -> tuple[Tensor, Kept]:
        second = kept[SECOND] + change**2
        return self.eta * change / (second.sqrt() + self.tau), {SECOND: second}


@dataclass(kw_only=True)
class Adam(ServerOptimizer):
    """Adam on the server, as Flower's ``FedAdam``, whose bias correction counts the run's rounds.

    Attributes
    ----------
    eta
        Learning rate of the server.
    beta_1, beta_2
        How much of the first and of the second moment is kept from round to round.
    tau
        What is added to the root of the second moment: the larger, the less the steps adapt.
    """

    eta: float = 1e-1
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        betas = [(name, is_decay(getattr(self, name)), DECAY) for name in ("beta_1", "beta_2")]
        _check_adaptive(self, betas)

    def _step(self, change: Tensor, kept: Kept, server_round: int) -> tuple[Tensor, Kept]:
        first = self.beta_1 * kept[FIRST] + (1 - self.beta_1) * change
        second = self.beta_2 * kept[SECOND] + (1 - self.beta_2) * change**2
        correction = math.sqrt(1 - self.beta_2 ** (server_round + 1)) / (1 - self.beta_1 ** (server_round + 1))
        return self.eta * correction * first / (second.sqrt() + self.tau), {FIRST: first, SECOND: second}


@dataclass(kw_only=True)
class Yogi(Adam):
    """Yogi on the server, as Flower's ``FedYogi``: the options of ``Adam``, another second moment, no correction."""

    eta: float = 1e-2

    def _step(self, change: Tensor, kept: Kept, _: int) -> tuple[Tensor, Kept]:
        square = change**2
        first = self.beta_1 * kept[FIRST] + (1 - self.beta_1) * change
        second = kept[SECOND] - (1 - self.beta_2) * square * torch.sign(kept[SECOND] - square)
        return self.eta * first / (second.sqrt() + self.tau), {FIRST: first, SECOND: second}


def _check_adaptive(of: Adagrad | Adam, betas: Iterable[tuple[str, bool, str]] = ()) -> None:
    check_fields(of, (("eta", 0 < of.eta < math.inf, POSITIVE), *betas, ("tau", 0 < of.tau < math.inf, POSITIVE)))
