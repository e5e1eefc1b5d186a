"""The registry of wide layers: from a layer's type to a layer that computes several clients at once."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from heterofl_flwr.core.rules.registry import adding

Rule = Callable[[Any, int], nn.Module]
"""From a client's layer and the number of clients to the wide layer."""

_Rule = TypeVar("_Rule", bound=Rule)
_rules: dict[type[nn.Module], Rule] = {}


def widens(*layer_types: type[nn.Module]) -> Callable[[_Rule], _Rule]:
    """Make the decorated function the rule for layers of exactly these types.

    A wide layer takes and returns tensors whose axis 1 holds the clients one after the other, client 0's channels
    first. It has the layer's parameters under the same names, each with ``clients`` times the values, again client
    after client in memory; which values does not matter. A subclass may compute something else and needs its own
    rule. Layers without parameters need none. A rule registered for a type replaces an earlier one::

        @widens(MyScale)
        def my_scale(layer: MyScale, clients: int) -> nn.Module:
            return joined(layer, clients, "channels")

    A rule that is wrong does no harm: a twin that computes anything else than the models is not used.
    """
    return adding("widens", _rules, layer_types)


def find_rule(layer: nn.Module) -> Rule | None:
    """Return the rule of the layer's own type."""
    return _rules.get(type(layer))


def joined(layer: nn.Module, clients: int, *numbers: str) -> nn.Module:
    """Return a copy of a layer with the clients joined along axis 0 of each parameter.

    Parameters
    ----------
    layer : nn.Module
        A client's layer.
    clients : int
        How many there are.
    numbers : str
        Attributes that grow with them, such as ``num_features`` and ``groups``.
    """
    parameters = {
        id(own): nn.Parameter(own.new_empty(clients * own.shape[0], *own.shape[1:]), own.requires_grad)
        for own in layer.parameters()
    }
    wide = copy.deepcopy(layer, dict(parameters))  # a deep copy takes what its memo already holds
    for number in numbers:
        setattr(wide, number, clients * getattr(layer, number))
    return wide


def stacked(parameter: Tensor, clients: int) -> nn.Parameter:
    """Return a parameter with a new first axis, the clients."""
    return nn.Parameter(parameter.new_empty(clients, *parameter.shape), parameter.requires_grad)
