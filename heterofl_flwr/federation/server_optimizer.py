"""Server optimisers: from the old global state along what a round's counting mean changes.

Formulas, options and defaults are those of Flower's ``FedAvgM``, ``FedAdagrad``, ``FedAdam`` and ``FedYogi`` (Hsu et
al., 2019; Reddi et al., 2020). One thing is added: an entry that nobody held in a round does not move, and what the
optimiser keeps of it stays.
"""

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heterofl_flwr.errors import DECAY, check_fields, is_decay

FIRST, SECOND = "", "second/"
"""What stands before a parameter's name in an optimiser's state: nothing for momentum, as old checkpoints have it."""

Kept = Mapping[str, Tensor]
"""Of one parameter: its first and second moment, by what stands before its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum:
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
        """Validate the values."""
        check_fields(
            self,
            (
                ("server_learning_rate", 0 < self.server_learning_rate < math.inf, "a number over 0"),
                ("server_momentum", is_decay(self.server_momentum), DECAY),
            ),
        )

    @property
    def keeps(self) -> Sequence[str]:
        """What is kept of each parameter."""
        return (FIRST,) if self.server_momentum else ()

    def step(self, change: Tensor, kept: Kept, server_round: int) -> tuple[Tensor, Kept]:
        """Return how a parameter moves, and what is kept of it."""
        del server_round
        velocity = self.server_momentum * kept[FIRST] + change if kept else change
        return self.server_learning_rate * velocity, dict.fromkeys(kept, velocity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adagrad:
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
        """Validate the values."""
        check_fields(self, _rules(self.eta, self.tau))

    @property
    def keeps(self) -> Sequence[str]:
        """What is kept of each parameter."""
        return (SECOND,)

    def step(self, change: Tensor, kept: Kept, server_round: int) -> tuple[Tensor, Kept]:
        """Return how a parameter moves, and what is kept of it."""
        del server_round
        second = kept[SECOND] + change**2
        return self.eta * change / (second.sqrt() + self.tau), {SECOND: second}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
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
        """Validate the values."""
        check_fields(self, _rules(self.eta, self.tau, self.beta_1, self.beta_2))

    @property
    def keeps(self) -> Sequence[str]:
        """What is kept of each parameter."""
        return (FIRST, SECOND)

    def step(self, change: Tensor, kept: Kept, server_round: int) -> tuple[Tensor, Kept]:
        """Return how a parameter moves, and what is kept of it."""
        first = self.beta_1 * kept[FIRST] + (1 - self.beta_1) * change
        second = self.beta_2 * kept[SECOND] + (1 - self.beta_2) * change**2
        correction = math.sqrt(1 - self.beta_2 ** (server_round + 1)) / (1 - self.beta_1 ** (server_round + 1))
        return self.eta * correction * first / (second.sqrt() + self.tau), {FIRST: first, SECOND: second}


@dataclass(frozen=True, slots=True, kw_only=True)
class Yogi(Adam):
    """Yogi on the server, as Flower's ``FedYogi``: the options of ``Adam``, another second moment, no correction."""

    eta: float = 1e-2

    def step(self, change: Tensor, kept: Kept, server_round: int) -> tuple[Tensor, Kept]:
        """Return how a parameter moves, and what is kept of it."""
        del server_round
        square = change**2
        first = self.beta_1 * kept[FIRST] + (1 - self.beta_1) * change
        second = kept[SECOND] - (1 - self.beta_2) * square * torch.sign(kept[SECOND] - square)
        return self.eta * first / (second.sqrt() + self.tau), {FIRST: first, SECOND: second}


ServerOptimizer = Momentum | Adagrad | Adam | Yogi


@torch.no_grad()
def optimized(
    optimizer: ServerOptimizer,
    old: Mapping[str, Tensor],
    means: dict[str, Tensor],
    state: MutableMapping[str, Tensor],
    held: Callable[[str], Tensor],
    server_round: int,
) -> dict[str, Tensor]:
    """Return the global state that an optimiser makes of a round's means; they and its own state are replaced.

    Parameters
    ----------
    optimizer : ServerOptimizer
        Takes the steps.
    old : Mapping[str, Tensor]
        The global state before the round.
    means : dict[str, Tensor]
        The means of the round.
    state : MutableMapping[str, Tensor]
        What the optimiser keeps from round to round; nothing before the first.
    held : Callable[[str], Tensor]
        From a parameter's name to how many clients held each of its entries.
    server_round : int
        The round, from 1.
    """
    for name, mean in means.items():
        change = mean - old[name]
        before = {kind: state.get(kind + name, torch.zeros_like(change)) for kind in optimizer.keeps}
        step, after = optimizer.step(change, before, server_round)
        trained = held(name) > 0
        means[name] = torch.where(trained, old[name] + step, old[name])
        for kind, tensor in after.items():
            state[kind + name] = torch.where(trained, tensor, before[kind])
    return means


def _rules(eta: float, tau: float, beta_1: float = 0.0, beta_2: float = 0.0) -> Sequence[tuple[str, bool, str]]:
    return (
        ("eta", 0 < eta < math.inf, "a number over 0"),
        ("beta_1", is_decay(beta_1), DECAY),
        ("beta_2", is_decay(beta_2), DECAY),
        ("tau", 0 < tau < math.inf, "a number over 0"),
    )


Schedule = Callable[[int], float]
"""From the round, counted from 1, to the learning rate."""


def multi_step(learning_rate: float, milestones: Sequence[int] = (), factor: float = 0.1) -> Schedule:
    """Return a schedule that multiplies the learning rate by ``factor`` after each milestone (Table 6)."""

    def at(server_round: int) -> float:
        return learning_rate * factor ** sum(milestone < server_round for milestone in milestones)

    return at
