"""Models that are slices of another: they know which, so that ``Plan.of`` needs no rule for their layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from heterofl_flwr.core.axes import Axes, Axis, build_channel_axis
from heterofl_flwr.core.layer_rules import register
from heterofl_flwr.elastic_models.channels import Channels, Places, kept_positions
from heterofl_flwr.errors import ConfigError, ShapeError
from heterofl_flwr.nn.layers import Scaler


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """Which part of a model: how it is cut, and how many channels of each group are kept."""

    channels: Channels
    kept: tuple[int, ...]

    def __deepcopy__(self, memo: object) -> "Slice":
        """Return this: it never changes."""
        return self

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return the part of one of the model's tensors, as a copy."""
        own = tensor
        for axis, places in enumerate(self.channels.axes.get(name, ())):
            kept = None if places is None else kept_positions(places, self.kept)
            if kept is not None and len(kept) < tensor.shape[axis]:
                tensor = tensor.index_select(axis, torch.from_numpy(kept).to(tensor.device))
        return tensor.clone() if tensor is own else tensor

    def axes_of(self, name: str, shape: Sequence[int], smaller: "Slice") -> Axes:
        """Return which part of this slice's parameter a smaller slice holds."""
        if not self.channels.equal(smaller.channels):
            raise ShapeError("the two models are slices of different models, or of one that was traced differently")
        if any(its > mine for mine, its in zip(self.kept, smaller.kept, strict=True)):
            raise ShapeError("the local model keeps more channels than the global one")
        groups = tuple(zip(self.kept, smaller.kept, strict=True))
        places = self.channels.axes.get(name) or [None] * len(shape)
        return tuple(
            Axis(length, length) if own is None else _axis(own, self.kept, groups)
            for length, own in zip(shape, places, strict=True)
        )


def _axis(places: Places, kept: Sequence[int], groups: Sequence[tuple[int, int]]) -> Axis:
    own = places[kept_positions(places, kept)]
    held = len(kept_positions(own, [few for _, few in groups]))
    # Most axes are whole, or a group once or several times; large models have so many that it pays to see that at once.
    if held == len(own):
        return Axis(held, held)
    group = int(own[0, 0])
    size = groups[group][0] if group >= 0 else len(own) + 1
    if len(own) % size == 0:
        in_order = np.stack([np.full(size, group), np.arange(size)], 1)
        if np.array_equal(own, np.tile(in_order, (len(own) // size, 1))):
            return Axis(len(own), held, len(own) // size)
    return build_channel_axis(list(map(tuple, own.tolist())), groups)


class Sliced(nn.Module):
    """Marks a model that ``elastic`` built; it is of the user's class too."""

    slice_: Slice

    def __reduce_ex__(self, protocol: object) -> tuple[Callable[..., nn.Module], tuple[type], Mapping[str, Any]]:
        """Pickle by the user's class, because the one of the slice has no name in any module."""
        own = next(base for base in type(self).__mro__ if not issubclass(base, Sliced))
        return _empty, (own,), self.__dict__


# One for each class of models, so that slices of one model are of one type.
_classes: dict[type[nn.Module], type[nn.Module]] = {}


def sliced_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of slices of a class of models: a subclass of the same name."""
    if kind not in _classes:
        own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        _classes[kind] = type(kind.__name__, (Sliced, kind), own)
    return _classes[kind]


def _empty(kind: type[nn.Module]) -> nn.Module:
    made = sliced_class(kind)
    return made.__new__(made)


@register(Sliced)
def axes_of_slices(full: nn.Module, local: nn.Module) -> dict[str, Axes]:
    """Return which part of each parameter the local slice holds of the full one."""
    one, two = full.__dict__["slice_"], local.__dict__["slice_"]
    named = full.named_parameters(remove_duplicate=False)
    return {name: one.axes_of(name, parameter.shape, two) for name, parameter in named}


def attach_scaler(full: nn.Module, model: nn.Module, ratio: Fraction) -> None:
    """Let each layer of a slice whose outputs are fewer than in the full model be followed by a Scaler."""
    if ratio > 1:
        raise ConfigError(f"the rate is {float(ratio):g} times the global rate; the global rate is the largest")
    if ratio == 1:
        return
    hook = partial(_scale, Scaler(ratio))
    layers = dict(model.named_modules())
    for name, layer in full.named_modules():
        outputs = _outputs(layer)
        if outputs is not None and outputs != _outputs(layers[name]):
            layers[name].register_forward_hook(hook)


def _scale(scaler: Scaler, layer: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
    """Scale a layer's output; of several the first."""
    scale = scaler.train(layer.training)
    return (scale(output[0]), *output[1:]) if isinstance(output, tuple) else scale(output)


def _outputs(layer: nn.Module) -> int | None:
    """Return how many outputs a layer has that the Scaler is for."""
    if isinstance(layer, nn.MultiheadAttention):
        layer = layer.out_proj
    if isinstance(layer, nn.Embedding | nn.Linear):
        return layer.weight.shape[isinstance(layer, nn.Embedding)]
    return layer.out_channels if isinstance(layer, _ConvNd) else None
