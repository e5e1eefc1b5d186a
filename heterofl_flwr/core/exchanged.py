"""Selection of the parameters that server and clients exchange. By default, these are the trained parameters."""

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
"""Minimum number of entries of a parameter that enter its fingerprint; smaller parameters enter in full."""


def exclude_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Exclude the parameters ``names`` from the exchange between server and clients.

    Excluded parameters, for example of a base model with adapters, are in no plan. They are not sent, averaged or
    stored. Copies of the model share them.
    """
    vars(model)[_EXCLUDED] = tuple(names)
    for name in vars(model)[_EXCLUDED]:
        model.get_parameter(name)  # raises an error for an unknown name


def exchange_frozen(model: nn.Module) -> nn.Module:
    """Mark a model so that its frozen parameters (``requires_grad=False``) are exchanged too, and return the model.

    Call this if each process computes different frozen values, for example random ones. Also call it if slices move.
    """
    vars(model)[_WITH_FROZEN] = True
    return model


def exchanged_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that server and clients exchange. A tied parameter occurs only under its first name.

    Frozen parameters are left out by default, because every node builds the same values. ``fingerprint`` checks this.
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
    """Return a dictionary from each name of a parameter to its first name; a tied parameter has several names."""
    names: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: names.setdefault(id(parameter), name) for name, parameter in named}


def untied(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which each tied parameter occurs only under its first name.

    If ``state`` has different tensors under the names of a tied parameter, the last tensor is used, as in
    ``load_state_dict``.
    """
    names = first_names(model)
    return {names.get(name, name): tensor for name, tensor in state.items()}


def frozen_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that are not exchanged, by name."""
    exchanged = exchanged_parameters(model)
    return {name: parameter for name, parameter in model.named_parameters() if name not in exchanged}


def shares_parameters(model: nn.Module) -> bool:
    """Whether a model has excluded parameters; copies of the model share them."""
    return bool(_excluded(model))


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the parameters that are not exchanged; '' if there are none.

    Of a large parameter, only a sample of entries is used. Entries are converted to bfloat16 first, so that models in
    bfloat16 and in float32 have the same digest.
    """
    digest, frozen = hashlib.sha256(), frozen_parameters(model)
    for name, parameter in frozen.items():
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // SAMPLES)].to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest() if frozen else ""


def exchanged_dtype(parameter: Tensor) -> torch.dtype:
    """Return the dtype in which a parameter is exchanged and averaged.

    For a parameter in bfloat16, this is float32, because numpy lacks bfloat16. Otherwise, it is the parameter's dtype.
    """
    return torch.float32 if parameter.dtype == torch.bfloat16 else parameter.dtype


def copy_exchanged(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, except that excluded parameters are not copied but shared."""
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
    """Raise ``ConfigError`` if a pattern matches no parameter name; the error message names the option ``what``."""
    if idle := [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]:
        raise ConfigError(f"{what}: no parameter matches {listed(idle)}; the parameters are {listed(names)}")


ALL = ("*",)
"""Patterns by which every parameter is shared. Parameters that match no pattern stay with their clients, as in
LG-FedAvg. Without patterns, all parameters stay with their clients (Standalone).
"""


def is_shared(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name matches one of the patterns (``fnmatch``)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
