"""A copy of a model without values, whose numbers remember which layer holds them."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from heterofl_flwr.elastic_models.rules import find_stand_in
from heterofl_flwr.elastic_models.trace import Length, Source, Trace

_LARGEST_WIDTH = 1 << 20


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number that a layer holds, alone or at a place in a sequence."""

    layer: str
    name: str
    place: int | None


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers under every name that they have."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(named)


def copy_with(model: nn.Module, new: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Return a copy of a model with other tensors; those that are one in the model are one in the copy."""
    memo: dict[int, object] = {}
    for name, tensor in named_tensors(model).items():
        if id(tensor) not in memo:
            other = new(name, tensor.detach())
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(other, tensor.requires_grad) if is_parameter else other
    return copy.deepcopy(model, memo)


class Skeleton:
    """A model on torch's meta device, and which of its layers is at work. The model given stays as it is."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy_with(model, lambda name, tensor: torch.empty_like(tensor, device="meta"))
        self._path: list[str] = []
        self._layers = dict(self.model.named_modules())
        for name, layer in self._layers.items():
            replacement = find_stand_in(layer)
            if replacement is not None:
                layer.__dict__["forward"] = partial(replacement, layer)
            layer.register_forward_pre_hook(lambda *given, name=name: self._path.append(name))
            layer.register_forward_hook(self._leave)

    def _leave(self, *given: object) -> None:
        self._path.pop()

    def remember(self, trace: Trace) -> Mapping[Number, Source]:
        """Give every tensor positions of its own, and every number of every layer a source; return the sources."""
        for tensor in named_tensors(self.model).values():
            trace.fresh(tensor)
        sources: dict[Number, Source] = {}
        for layer, module in self._layers.items():
            for name, value in list(vars(module).items()):
                module.__dict__[name] = _with_lengths(trace, sources, value, partial(Number, layer, name))
        return sources

    @property
    def layer_at_work(self) -> str:
        """The name of the layer at work and its type, for a message."""
        return f"layer {(self._path or [''])[-1] or '(the model itself)'} of type {self.type_at_work}"

    @property
    def type_at_work(self) -> str:
        """The type of the layer at work."""
        return type(self._layers[(self._path or [""])[-1]]).__name__

    def train(self, mode: bool) -> None:
        """Set the mode; batch norm stays in evaluation, because it raises an error for small batches in training."""
        self._path.clear()
        for layer in self._layers.values():
            layer.training = mode and not isinstance(layer, _NormBase)


def _with_lengths(trace: Trace, sources: dict[Number, Source], value: object, number: partial[Number]) -> object:
    """Return the value with lengths in place of its whole numbers."""

    def length(one: object, place: int | None) -> object:
        if type(one) is not int or not 1 < one < _LARGEST_WIDTH:
            return one
        sources[number(place)] = source = Source(trace, partial(trace.positions.new, one))
        return Length.of(one, (source,))

    if type(value) in (tuple, list, torch.Size):
        kind = cast("Callable[[Iterable[object]], object]", type(value))
        return kind(length(one, place) for place, one in enumerate(cast("Iterable[object]", value)))
    return length(value, None)
