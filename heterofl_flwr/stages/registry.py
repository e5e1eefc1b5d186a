"""The stages of this package by name: what texts in settings, and instructions to clients, stand for."""

import re
from collections.abc import Mapping
from inspect import signature
from types import MappingProxyType

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.stages.clip import Clip
from heterofl_flwr.stages.compress import Compress
from heterofl_flwr.stages.feddyn import FedDyn
from heterofl_flwr.stages.moving_average import MovingAverage
from heterofl_flwr.stages.secure_sum import SecureSum
from heterofl_flwr.stages.server_optimizer import Adagrad, Adam, Momentum, Nesterov, Yogi
from heterofl_flwr.stages.stage import Stage

STAGES: Mapping[str, type[Stage]] = MappingProxyType(
    {
        "momentum": Momentum,
        "adam": Adam,
        "yogi": Yogi,
        "adagrad": Adagrad,
        "nesterov": Nesterov,
        "moving-average": MovingAverage,
        "feddyn": FedDyn,
        "secure-sum": SecureSum,
    }
)
"""The stages that ``server.stages`` can name; a number without a name is the first option of each."""

CLIENT_STAGES: tuple[type[Stage], ...] = (Clip, *STAGES.values(), Compress)
"""The stages that an instruction to a client can name, in the order in which the client runs them."""


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Return the stages that a text names in their order, such as ``momentum(0.9), moving-average(decay=0.99)``.

    What is left out of the arguments has its default.
    """
    parts = re.findall(r"[^,()]+(?:\([^()]*\))?", text)
    if ", ".join(part.strip() for part in parts) != re.sub(r"\s*,\s*(?![^(]*\))", ", ", text.strip()):
        raise ConfigError(f"{text!r} cannot be read; {_expected()}")
    return tuple(_parse_stage(part.strip()) for part in parts)


def _parse_stage(text: str) -> Stage:
    name, _, arguments = text.rstrip(")").partition("(")
    if name.strip() not in STAGES:
        raise ConfigError(f"{name!r} is no stage; {_expected()}")
    kind = STAGES[name.strip()]
    known, given = list(signature(kind).parameters), dict[str, float]()
    for part in arguments.split(",") if arguments.strip() else ():
        key, _, value = (own.strip() for own in part.rpartition("="))
        key = key or known[0]
        if key not in known or key in given:
            raise ConfigError(f"{text}: {part.strip()!r} is no argument; expected {', '.join(known)}, each once")
        try:
            given[key] = float(value)
        except ValueError as error:
            raise ConfigError(f"{text}: {key} is {value!r}; expected a number") from error
    return kind(**given)


def _expected() -> str:
    return f"expected some of {', '.join(STAGES)}, with arguments as in 'adam(eta=0.1, tau=0.001)'"


def client_stages(config: Mapping[str, object]) -> list[Stage]:
    """Return the stages that an instruction names, in the order in which a client runs them."""
    found = (kind.from_instruction(config) for kind in CLIENT_STAGES)
    return [stage for stage in found if stage is not None]
