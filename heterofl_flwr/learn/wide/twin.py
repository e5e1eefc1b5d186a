"""A model's wide twin: the same forward pass over wide layers."""

import copy

from torch import nn

from heterofl_flwr.learn.unfit import UnfitError
from heterofl_flwr.learn.wide.registry import find_rule


def wide_twin(model: nn.Module, clients: int) -> nn.Module:
    """Return a copy of a model in which each layer that has a rule is wide.

    It maps (batch, clients * channels, ...) to (batch, clients * classes), unless the forward pass does something on
    axis 1 that a wide tensor does not bear, such as reshaping it to a fixed size: whoever uses a twin must compare it
    with the models first. Its parameters hold no values yet.

    Raises
    ------
    UnfitError
        If a layer with parameters has no rule.
    """
    wide: dict[int, nn.Module] = {}
    done: set[int] = set()
    for name, layer in model.named_modules():
        if id(layer) in done:  # within a layer that has a rule
            continue
        rule = find_rule(layer)
        if rule is not None:
            wide[id(layer)] = rule(layer, clients)
            done.update(map(id, layer.modules()))
        elif any(True for _ in layer.parameters(recurse=False)):
            kind = type(layer).__name__
            raise UnfitError(f"layer {name or '(the model itself)'} of type {kind} has no wide twin: register a rule")
    return copy.deepcopy(model, dict(wide))  # a deep copy takes what its memo already holds
