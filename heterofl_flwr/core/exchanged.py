"""Parameters that server and clients exchange: all but those that the model excludes."""

import copy
import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_EXCLUDED = "not_exchanged"

SAMPLES = 256
"""Smallest number of entries of a parameter that its fingerprint reads, if it has as many."""


def exclude_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Mark parameters that are never exchanged, because server and clients build the same ones.

    Those of a pre-trained model under adapters are such. They are in no plan, so nobody sends, averages or stores
    them. The mark is the model's: a copy of the model has it too. That a parameter is frozen does not exclude
    it, for its values may be random, and then every client would draw others.
    """
    vars(model)[_EXCLUDED] = tuple(names)
    for name in vars(model)[_EXCLUDED]:
        model.get_parameter(name)  # raises an error if there is none


def exchanged_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that server and clients exchange; a tied one has its first name."""
    excluded: set[int] = set()
    for layer in model.modules():
        if names := vars(layer).get(_EXCLUDED, ()):
            # Some may be gone: those of blocks that a shallower model lacks.
            excluded |= {
                id(parameter) for name, parameter in layer.named_parameters(remove_duplicate=False) if name in names
            }
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in excluded}


def fingerprint(model: nn.Module) -> str:
    """Return a digest of what is never exchanged: samples of each parameter; empty where everything is.

    It is that of bfloat16, so a device may hold the base of adapters in half of the server's bytes.
    """
    exchanged = set(map(id, exchanged_parameters(model).values()))
    digest, empty = hashlib.sha256(), True
    for name, parameter in model.named_parameters():
        if id(parameter) not in exchanged:
            values, empty = parameter.detach().flatten(), False
            sample = values[:: max(1, len(values) // SAMPLES)].to("cpu", torch.bfloat16)
            digest.update(f"{name} {tuple(parameter.shape)}".encode() + sample.view(torch.int16).numpy().tobytes())
    return "" if empty else digest.hexdigest()


def exchanged_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type in which a parameter travels and is averaged: that of bfloat16, which numpy lacks, is float32."""
    return torch.float32 if parameter.dtype == torch.bfloat16 else parameter.dtype


def copy_exchanged(model: nn.Module) -> nn.Module:
    """Return a deep copy that shares with the model the parameters that are never exchanged."""
    parameter = set(map(id, exchanged_parameters(model).values()))
    return copy.deepcopy(model, {id(source): source for source in model.parameters() if id(source) not in parameter})
