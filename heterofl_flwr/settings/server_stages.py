"""Parser of the setting ``server.stages``."""

import re
from collections.abc import Mapping
from inspect import signature
from types import MappingProxyType

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.user_code import load_function
from heterofl_flwr.stages.feddyn import FedDyn
from heterofl_flwr.stages.scaffold import Scaffold
from heterofl_flwr.stages.secure_sum import SecureSum
from heterofl_flwr.stages.server_optimizer import Adagrad, Adam, Momentum, MovingAverage, Nesterov, Yogi
from heterofl_flwr.stages.server_stage import ServerStage

STAGES: Mapping[str, type[ServerStage]] = MappingProxyType(
    {
        "momentum": Momentum,
        "adam": Adam,
        "yogi": Yogi,
        "adagrad": Adagrad,
        "nesterov": Nesterov,
        "moving-average": MovingAverage,
        "feddyn": FedDyn,
        "scaffold": Scaffold,
        "secure-sum": SecureSum,
    }
)
"""Class of each stage, by its name in ``server.stages``."""


def parse_stages(text: str, *, load: bool = True) -> tuple[ServerStage, ...]:
    """Return the server stages in text such as ``momentum(0.9), moving-average(decay=0.99)``.

    With ``load=False``, users' classes (``module:Class``) are left out and not imported.
    """
    parts = re.findall(r"[^,()]+(?:\([^()]*\))?", text)
    if ", ".join(part.strip() for part in parts) != re.sub(r"\s*,\s*(?![^(]*\))", ", ", text.strip()):
        raise ConfigError(f"{text!r} cannot be read; {_expected()}")
    return tuple(_parse_stage(part.strip()) for part in parts if load or ":" not in part)


def _parse_stage(text: str) -> ServerStage:
    name, _, arguments = text.rstrip(")").partition("(")
    kind = _stage_class(name.strip())
    arguments_of = signature(kind)
    names, values = list(arguments_of.parameters), dict[str, float]()
    for part in arguments.split(",") if arguments.strip() else ():
        key, _, value = (side.strip() for side in part.rpartition("="))
        key = key or next((name for name in names if name not in values), "")
        if key not in names or key in values:
            expected = f"{', '.join(names)}, each once" if names else "none"
            raise ConfigError(f"{text}: {part.strip()!r} is no argument; expected {expected}")
        try:
            values[key] = int(value) if value.removeprefix("-").isdecimal() else float(value)
        except ValueError as error:
            raise ConfigError(f"{text}: {key} is {value!r}; expected a number") from error
    try:
        arguments_of.bind(**values)
    except TypeError as error:  # an argument without default is missing
        raise ConfigError(f"{text}: {error}; expected {', '.join(names)}") from error
    return kind(**values)


def _stage_class(name: str) -> type[ServerStage]:
    if ":" not in name:
        if name not in STAGES:
            raise ConfigError(f"{name!r} is no stage; {_expected()}")
        return STAGES[name]
    kind = load_function(name, "server.stages")
    if not (isinstance(kind, type) and issubclass(kind, ServerStage)):
        raise ConfigError(f"server.stages names {name!r}, which is {kind!r}; expected a subclass of ServerStage")
    return kind


def _expected() -> str:
    named = f"{', '.join(STAGES)} or 'module:Class' of your own"
    return f"expected some of {named}, with arguments as in 'adam(eta=0.1, tau=0.001)'"
