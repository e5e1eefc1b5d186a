"""Selection of the parameters that server and clients exchange."""

import copy
import hashlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, listed

_EXCLUDED = "not_exchanged"
_WITH_FROZEN = "exchanges_frozen"

SAMPLES = 256
"""Minimum number of entries that ``sample`` returns. A smaller parameter is used in full."""


def exclude_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Exclude parameters from the exchange. Copies made by ``copy_exchanged`` share these parameters with the model."""
    vars(model)[_EXCLUDED] = tuple(names)


def exchange_frozen(model: nn.Module) -> nn.Module:
    """Mark a model's frozen parameters (``requires_grad=False``) as exchanged, and return the model.

    Call this if a client's slice changes from round to round, or if processes initialise frozen parameters differently.
    """
    vars(model)[_WITH_FROZEN] = True
    return model


def exchanged_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that server and clients exchange.

    Parameters that ``exclude_parameters`` excluded are left out. Frozen parameters are left out too, unless
    ``exchange_frozen`` was called on a module that contains them. A tied parameter occurs only under its first name.
    """
    excluded = _excluded(model)
    with_frozen = {
        id(parameter) for layer in model.modules() if vars(layer).get(_WITH_FROZEN) for parameter in layer.parameters()
    }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in excluded and (parameter.requires_grad or id(parameter) in with_frozen)
    }


def first_names(model: nn.Module) -> dict[str, str]:
    """Return a dictionary from each name of a parameter to the first name of this parameter.

    Only a tied parameter has several names.
    """
    names: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: names.setdefault(id(parameter), name) for name, parameter in named}


def untied(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with each tied parameter only under its first name."""
    names = first_names(model)
    return {names.get(name, name): tensor for name, tensor in state.items()}


def frozen_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are not exchanged (frozen or excluded), by name."""
    exchanged = exchanged_parameters(model)
    return {name: parameter for name, parameter in model.named_parameters() if name not in exchanged}


def shares_parameters(model: nn.Module) -> bool:
    """Return True if copies of the model share parameters that ``exclude_parameters`` excluded."""
    return bool(_excluded(model))


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the parameters that are not exchanged; '' if all are exchanged.

    It is computed from their names, their shapes and samples of their entries.
    """
    # bfloat16, so that models in bfloat16 and in float32 have the same digest
    digest, frozen = hashlib.sha256(), frozen_parameters(model)
    for name, parameter in frozen.items():
        entries = sample(parameter).to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + entries.view(torch.int16).numpy().tobytes())
    return digest.hexdigest() if frozen else ""


def sample(parameter: Tensor) -> Tensor:
    """Return ``SAMPLES`` entries or more of a parameter, at equal distances; all entries of a smaller parameter."""
    values = parameter.detach().flatten()
    return values[:: max(1, len(values) // SAMPLES)]


def exchanged_dtype(parameter: Tensor) -> torch.dtype:
    """Return the dtype in which a parameter is exchanged, and the server computes: float32 or wider."""
    # Sums and moments of stages would lose small changes in float16, and numpy lacks bfloat16.
    return torch.promote_types(parameter.dtype, torch.float32)


def copy_exchanged(model: nn.Module) -> nn.Module:
    """Deep-copy a model; the copy shares the parameters that ``exclude_parameters`` excluded."""
    shared = _excluded(model)
    return copy.deepcopy(
        model, {id(parameter): parameter for parameter in model.parameters() if id(parameter) in shared}
    )


def _excluded(model: nn.Module) -> set[int]:
    excluded: set[int] = set()
    for layer in model.modules():
        if names := vars(layer).get(_EXCLUDED, ()):
            # A shallower model may lack the blocks that some names belong to.
            named = layer.named_parameters(remove_duplicate=False)
            excluded |= {id(parameter) for name, parameter in named if name in names}
    return excluded


def check_patterns(what: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise ``ConfigError`` if a pattern matches no parameter name. ``what`` is the option's name."""
    if idle := [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]:
        raise ConfigError(f"{what}: no parameter matches {listed(idle)}; the parameters are {listed(names)}")


ALL = ("*",)
"""Default of ``Slicing.shared``: a pattern that matches all parameters. Each client keeps its own values of a parameter
that matches no pattern (LG-FedAvg). With an empty tuple, no parameter is averaged (Standalone).
"""


def is_shared(name: str, patterns: Iterable[str]) -> bool:
    """Return True if a parameter name matches one of the patterns (``fnmatch``)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
