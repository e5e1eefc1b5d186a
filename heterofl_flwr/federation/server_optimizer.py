"""Server optimisers: from the old global state along what a round's counting mean changes.

Formulas, options and defaults are those of Flower's ``FedAvgM``, ``FedAdagrad``, ``FedAdam`` and ``FedYogi`` (Hsu et
al., 2019; Reddi et al., 2020). One thing is added: an entry that nobody held in a round does not move, and what the
optimiser keeps of it stays.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from types import MappingProxyType

import torch
from torch import Tensor

from heterofl_flwr.errors import DECAY, ConfigError, check_fields, is_decay

FIRST, SECOND = "", "second/"
"""What stands before a parameter's name in an optimiser's state: nothing for momentum, as old checkpoints have it."""

Kept = Mapping[str, Tensor]
"""The first and second moment of one parameter, by what stands before its name."""

POSITIVE = "a number over 0"


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
        _check_adaptive(self)

    def _step(self, change: Tensor, kept: Kept, _: int) -> tuple[Tensor, Kept]:
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
        betas = [(name, is_decay(getattr(self, name)), DECAY) for name in ("beta_1", "beta_2")]
        _check_adaptive(self, betas)

    def _step(self, change: Tensor, kept: Kept, server_round: int) -> tuple[Tensor, Kept]:
        first = self.beta_1 * kept[FIRST] + (1 - self.beta_1) * change
        second = self.beta_2 * kept[SECOND] + (1 - self.beta_2) * change**2
        correction = math.sqrt(1 - self.beta_2 ** (server_round + 1)) / (1 - self.beta_1 ** (server_round + 1))
        return self.eta * correction * first / (second.sqrt() + self.tau), {FIRST: first, SECOND: second}


@dataclass(frozen=True, slots=True, kw_only=True)
class Yogi(Adam):
    """Yogi on the server, as Flower's ``FedYogi``: the options of ``Adam``, another second moment, no correction."""

    eta: float = 1e-2

    def _step(self, change: Tensor, kept: Kept, _: int) -> tuple[Tensor, Kept]:
        square = change**2
        first = self.beta_1 * kept[FIRST] + (1 - self.beta_1) * change
        second = kept[SECOND] - (1 - self.beta_2) * square * torch.sign(kept[SECOND] - square)
        return self.eta * first / (second.sqrt() + self.tau), {FIRST: first, SECOND: second}


ServerOptimizer = Momentum | Adagrad | Adam | Yogi

OPTIMIZERS: Mapping[str, tuple[Callable[..., ServerOptimizer], str]] = MappingProxyType(
    {
        "momentum": (Momentum, "server_momentum"),
        "adam": (Adam, "eta"),
        "yogi": (Yogi, "eta"),
        "adagrad": (Adagrad, "eta"),
    }
)
"""The optimisers by name, each with the argument that an unnamed number is."""


def parse_optimizer(text: str) -> ServerOptimizer | None:
    """Return the optimiser that a text names, such as ``adam(eta=0.1, tau=0.001)``; None for ``none``.

    What is left out has its default. A number without a name, as in ``momentum(0.9)``, is what ``OPTIMIZERS`` says.
    """
    if text == "none":
        return None
    match = re.fullmatch(r"(\w+)(?:\((.*)\))?", text)
    if match is None or match[1] not in OPTIMIZERS:
        raise ConfigError(f"{text!r} is no optimiser; expected none, {', '.join(OPTIMIZERS)}, or such as adam(eta=0.1)")
    kind, unnamed = OPTIMIZERS[match[1]]
    known, given = signature(kind).parameters, dict[str, float]()
    for part in match[2].split(",") if match[2] else ():
        key, _, value = (own.strip() for own in part.rpartition("="))
        key = key or unnamed
        if key not in known or key in given:
            raise ConfigError(f"{text}: {part.strip()!r} is no argument; expected {', '.join(known)}, each once")
        try:
            given[key] = float(value)
        except ValueError as error:
            raise ConfigError(f"{text}: {key} is {value!r}; expected a number") from error
    return kind(**given)


@torch.no_grad()
def apply_optimizer(
    optimizer: ServerOptimizer,
    old: Mapping[str, Tensor],
    means: dict[str, Tensor],
    state: MutableMapping[str, Tensor],
    held: Callable[[str], Tensor],
    server_round: int,
) -> dict[str, Tensor]:
    """Return the global state after an optimiser's step; ``means`` and the optimiser's ``state`` are replaced.

    ``held`` gives from a parameter's name how many clients held each of its entries.
    """
    for name, mean in means.items():
        change = mean - old[name]
        known = {kind: state[kind + name] for kind in (FIRST, SECOND) if kind + name in state}
        before = defaultdict(partial(torch.zeros_like, change), known)
        step, after = optimizer._step(change, before, server_round)
        trained = held(name) > 0
        means[name] = torch.where(trained, old[name] + step, old[name])
        for kind, tensor in after.items():
            state[kind + name] = torch.where(trained, tensor, before[kind])
    return means


def _check_adaptive(of: Adagrad | Adam, betas: Iterable[tuple[str, bool, str]] = ()) -> None:
    check_fields(of, (("eta", 0 < of.eta < math.inf, POSITIVE), *betas, ("tau", 0 < of.tau < math.inf, POSITIVE)))


Schedule = Callable[[int], float]
"""From the round, counted from 1, to the learning rate."""


def multi_step(learning_rate: float, milestones: Sequence[int] = (), factor: float = 0.1) -> Schedule:
    """Return a schedule that multiplies the learning rate by ``factor`` after each milestone (Table 6)."""
    return lambda server_round: learning_rate * factor ** sum(milestone < server_round for milestone in milestones)
