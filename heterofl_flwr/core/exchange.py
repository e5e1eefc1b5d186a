"""Which of a model's parameters server and clients exchange: all but those that the model itself excludes.

Some may go one way only, from the server to the clients.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_EXCLUDED, _NOT_RETURNED = "not_exchanged", "not_returned"


def exclude_parameters(model: nn.Module, names: Iterable[str]) -> None:
    """Mark parameters that are never exchanged, because server and clients build the same ones.

    Those of a pre-trained model under adapters are such. They are in no plan, so nobody sends, averages or stores
    them. The mark is the model's: a copy of the model has it too. That a parameter is frozen does not exclude
    it, for its values may be random, and then every client would draw others.
    """
    _mark(model, _EXCLUDED, names)


def exchanged_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that server and clients exchange; a tied one has its first name."""
    return _unmarked(model, _EXCLUDED)


def exchanged_dtype(parameter: Tensor) -> torch.dtype:
    """Return the type in which a parameter travels and is averaged: that of bfloat16, which numpy lacks, is float32."""
    return torch.float32 if parameter.dtype == torch.bfloat16 else parameter.dtype


def exclude_from_replies(model: nn.Module, names: Iterable[str]) -> None:
    """Mark parameters that the server sends and clients do not return, because the server alone changes them.

    They are sent, evaluated and stored as others; a client must not train them.
    """
    _mark(model, _NOT_RETURNED, names)


def returned_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model that clients return after training."""
    return _unmarked(model, _EXCLUDED, _NOT_RETURNED)


def copy_exchanged(model: nn.Module) -> nn.Module:
    """Return a deep copy that shares with the model the parameters that are never exchanged."""
    own = set(map(id, exchanged_parameters(model).values()))
    return copy.deepcopy(model, {id(other): other for other in model.parameters() if id(other) not in own})


def _mark(model: nn.Module, mark: str, names: Iterable[str]) -> None:
    vars(model)[mark] = tuple(names)
    for name in vars(model)[mark]:
        model.get_parameter(name)  # raises an error if there is none


def _unmarked(model: nn.Module, *marks: str) -> dict[str, nn.Parameter]:
    marked: set[int] = set()
    for layer in model.modules():
        names = {name for mark in marks for name in vars(layer).get(mark, ())}
        if names:
            # Some may be gone: those of blocks that a shallower model lacks.
            marked |= {id(own) for name, own in layer.named_parameters(remove_duplicate=False) if name in names}
    return {name: own for name, own in model.named_parameters() if id(own) not in marked}
