"""Tied parameters: one tensor under several names, such as an embedding that is also the decoder.

A tied parameter counts once, travels once and is kept once: under the first of its names.
"""

from collections.abc import Mapping

from torch import Tensor, nn


def first_names(model: nn.Module) -> dict[str, str]:
    """Return the first name of each parameter, by each of its names, in the model's order."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in named}


def untied(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with each of the model's parameters under its first name.

    A ``state_dict``, or a checkpoint of an earlier version, has tied parameters under each of their names. As when a
    model loads it, the last value counts.
    """
    first = first_names(model)
    return {first.get(name, name): tensor for name, tensor in state.items()}
