"""Wide models: the registry of wide layers, each of which computes several clients at once, and their assembly."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heterofl_flwr.core.layer_rules import Registry
from heterofl_flwr.errors import HeteroFLError


class IncompatibleError(HeteroFLError):
    """These models cannot be computed together in this way; alone they can."""


WideRule = Callable[[Any, int], nn.Module]
"""From a client's layer and the number of clients to the wide layer."""

_WideRule = TypeVar("_WideRule", bound=WideRule)
_rules = Registry("widens")


def widens(*layer_types: type[nn.Module]) -> Callable[[_WideRule], _WideRule]:
    """Make the decorated function the rule for layers of exactly these types.

    A wide layer takes and returns tensors whose axis 1 holds the clients one after the other, client 0's channels
    first. It has the layer's parameters under the same names, each with ``clients`` times the values, again client
    after client in memory; which values does not matter. A subclass may compute something else and needs its own
    rule. Layers without parameters need none. A rule registered for a type replaces an earlier one::

        @widens(MyScale)
        def my_scale(layer: MyScale, clients: int) -> nn.Module:
            return joined(layer, clients, "channels")

    A rule that is wrong does no harm: a wide model that computes anything else than the models is not used.
    """
    return _rules.add(*layer_types)


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
    """Return a parameter with a new first axis, the clients; it holds no values yet."""
    return nn.Parameter(parameter.new_empty(clients, *parameter.shape), parameter.requires_grad)


@widens(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _convolution(layer: nn.Module, clients: int) -> nn.Module:
    return joined(layer, clients, "in_channels", "out_channels", "groups")


@widens(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _channel_norm(layer: nn.Module, clients: int) -> nn.Module:
    return joined(layer, clients, "num_features")


@widens(nn.GroupNorm)
def _group_norm(layer: nn.GroupNorm, clients: int) -> nn.Module:
    return joined(layer, clients, "num_groups", "num_channels")


@widens(nn.Linear)
class _Linear(nn.Module):
    """Each client's linear layer on its part of (batch, clients * inputs)."""

    def __init__(self, layer: nn.Linear, clients: int) -> None:
        super().__init__()
        self.weight = stacked(layer.weight, clients)  # (clients, outputs, inputs)
        self.bias = None if layer.bias is None else stacked(layer.bias, clients)

    def forward(self, x: Tensor) -> Tensor:
        clients, _, inputs = self.weight.shape
        parts = x.reshape(len(x), clients, inputs).transpose(0, 1)
        outputs = (
            torch.bmm(parts, self.weight.mT)
            if self.bias is None
            else torch.baddbmm(self.bias[:, None], parts, self.weight.mT)
        )  # (clients, batch, outputs)
        return outputs.transpose(0, 1).flatten(1)


@widens(nn.LayerNorm)
class _LayerNorm(nn.Module):
    """Each client's layer norm over all axes but the batch."""

    def __init__(self, layer: nn.LayerNorm, clients: int) -> None:
        super().__init__()
        self.clients, self.shape, self.eps = clients, layer.normalized_shape, layer.eps
        self.weight = None if layer.weight is None else stacked(layer.weight, clients)
        self.bias = None if layer.bias is None else stacked(layer.bias, clients)

    def forward(self, x: Tensor) -> Tensor:
        parts = F.layer_norm(x.reshape(len(x), self.clients, *self.shape), self.shape, eps=self.eps)
        parts = parts if self.weight is None else parts * self.weight
        parts = parts if self.bias is None else parts + self.bias
        return parts.flatten(1, 2)


@widens(nn.PReLU)
class _PReLU(nn.Module):
    """Each client's slopes, one or as many as it has channels."""

    def __init__(self, layer: nn.PReLU, clients: int) -> None:
        super().__init__()
        self.weight = stacked(layer.weight, clients)

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight.flatten().repeat_interleave(x.shape[1] // self.weight.numel()))


def wide_twin(model: nn.Module, clients: int) -> nn.Module:
    """Return a copy of a model in which each layer that has a rule is wide.

    It maps (batch, clients * channels, ...) to (batch, clients * classes), unless the forward pass does something on
    axis 1 that a wide tensor does not bear, such as reshaping it to a fixed size: whoever uses a twin must compare it
    with the models first. Its parameters hold no values yet.

    Raises
    ------
    IncompatibleError
        If a layer with parameters has no rule.
    """
    wide: dict[int, nn.Module] = {}
    done: set[int] = set()
    for name, layer in model.named_modules():
        if id(layer) in done:  # within a layer that has a rule
            continue
        rule = _rules.get(type(layer))
        if rule is not None:
            wide[id(layer)] = rule(layer, clients)
            done.update(map(id, layer.modules()))
        elif any(True for _ in layer.parameters(recurse=False)):
            kind = type(layer).__name__
            raise IncompatibleError(
                f"layer {name or '(the model itself)'} of type {kind} has no wide twin: register a rule"
            )
    return copy.deepcopy(model, dict(wide))  # a deep copy takes what its memo already holds
