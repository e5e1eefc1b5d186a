"""The parameters of a model that server and clients exchange: by default, those that are trained."""

import copy
import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

_EXCLUDED = "not_exchanged"
_WITH_FROZEN = "exchanges_frozen"

SAMPLES = 256
"""Lower bound of the entries of a parameter that its fingerprint takes, if it has that many."""


def exclude_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Exclude parameters from the exchange that copies of the model share with it, such as a base under adapters.

    They are in no plan: they are not sent, averaged or stored. Copies of the model keep this mark.
    """
    vars(model)[_EXCLUDED] = tuple(names)
    for name in vars(model)[_EXCLUDED]:
        model.get_parameter(name)  # raises an error if there is none


def exchange_frozen(model: nn.Module) -> nn.Module:
    """Return the model, with frozen parameters (``requires_grad=False``) exchanged as others are.

    For frozen values that differ from process to process, as random ones do, and for slices that move.
    """
    vars(model)[_WITH_FROZEN] = True
    return model


def exchanged_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that server and clients exchange; a tied one has its first name.

    Frozen parameters are left out: each node builds the same ones, which ``fingerprint`` checks.
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
    """Return the first name of each parameter, by each of its names, in the model's order."""
    names: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: names.setdefault(id(parameter), name) for name, parameter in named}


def untied(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with each of the model's parameters under its first name.

    A ``state_dict`` has tied parameters under each of their names. As when a model loads it, the last value counts.
    """
    names = first_names(model)
    return {names.get(name, name): tensor for name, tensor in state.items()}


def frozen_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that are never exchanged."""
    exchanged = exchanged_parameters(model)
    return {name: parameter for name, parameter in model.named_parameters() if name not in exchanged}


def shares_parameters(model: nn.Module) -> bool:
    """Whether copies of the model share parameters with it."""
    return bool(_excluded(model))


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the parameters that are never exchanged, of samples of each; empty if there are none.

    It is that of bfloat16, so a device may hold the base of adapters in half of the server's bytes.
    """
    digest, frozen = hashlib.sha256(), frozen_parameters(model)
    for name, parameter in frozen.items():
        values = parameter.detach().flatten()
        sample = values[:: max(1, len(values) // SAMPLES)].to("cpu", torch.bfloat16)
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest() if frozen else ""


def exchanged_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type in which a parameter travels and is averaged: that of bfloat16, which numpy lacks, is float32."""
    return torch.float32 if parameter.dtype == torch.bfloat16 else parameter.dtype


def copy_exchanged(model: nn.Module) -> nn.Module:
    """Return a deep copy that shares the excluded parameters with the model."""
    shared = _excluded(model)
    return copy.deepcopy(
        model, {id(parameter): parameter for parameter in model.parameters() if id(parameter) in shared}
    )


def _excluded(model: nn.Module) -> set[int]:
    """Return the ids of the excluded parameters."""
    excluded: set[int] = set()
    for layer in model.modules():
        if names := vars(layer).get(_EXCLUDED, ()):
            # A shallower model may lack the blocks of some.
            named = layer.named_parameters(remove_duplicate=False)
            excluded |= {id(parameter) for name, parameter in named if name in names}
    return excluded
