"""Slices of a traced model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from heterofl_flwr.common.errors import ConfigError, ShapeError
from heterofl_flwr.core.axes import Axes, Axis, build_channel_axis
from heterofl_flwr.elastic_models.channels import Channels, Places, kept_positions
from heterofl_flwr.elastic_models.rules import ADJUSTMENTS, adjust
from heterofl_flwr.nn.execution import evaluating
from heterofl_flwr.nn.layers import Scaler


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """Slice of a traced model: the number of channels to keep of each group.

    A model that was sliced stores its ``Slice`` in the attribute ``plan_rule``, which ``Plan.of`` calls.
    """

    channels: Channels
    widths: tuple[int, ...]

    def __deepcopy__(self, memo: object) -> "Slice":
        return self

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return a copy of the kept entries of ``tensor``, the full model's parameter or buffer ``name``."""
        whole_tensor = tensor
        for axis, places in enumerate(self.channels.axes.get(name, ())):
            indices = None if places is None else kept_positions(places, self.widths)
            if indices is not None and len(indices) < tensor.shape[axis]:
                tensor = tensor.index_select(axis, torch.from_numpy(indices).to(tensor.device))
        return tensor.clone() if tensor is whole_tensor else tensor

    def places(self, names: Iterable[str]) -> dict[str, dict[int, list[tuple[int, int]]]]:
        """Return, by parameter name and sliced axis, the group and channel of each kept index."""
        return {
            name: {
                axis: self._remaining(places)
                for axis, places in enumerate(self.channels.axes.get(name, ()))
                if places is not None
            }
            for name in names
        }

    def _remaining(self, places: Places) -> list[tuple[int, int]]:
        return list(map(tuple, places[kept_positions(places, self.widths)].tolist()))

    def __call__(self, full_model: nn.Module, local: nn.Module) -> dict[str, Axes]:
        """Return, by parameter name, the axes that select the slice ``local`` from ``full_model``."""
        return self.axes(full_model.named_parameters(remove_duplicate=False), vars(local)["plan_rule"])

    def axes(self, named: Iterable[tuple[str, Tensor]], smaller: "Slice") -> dict[str, Axes]:
        """Return, by parameter name, the axes that select the slice ``smaller`` from this slice."""
        if self.channels.sizes != smaller.channels.sizes:
            raise ShapeError("the global and the local model are slices of different models")
        groups = tuple(zip(self.widths, smaller.widths, strict=True))
        axes_by_places: dict[int, Axis] = {}  # cache: equal axes share one array

        def axis(length: int, places: Places | None) -> Axis:
            if places is None:
                return Axis(length, length)
            if id(places) not in axes_by_places:
                axes_by_places[id(places)] = build_channel_axis(self._remaining(places), groups)
            return axes_by_places[id(places)]

        every = self.channels.axes
        return {
            name: tuple(map(axis, tensor.shape, every.get(name) or [None] * tensor.dim())) for name, tensor in named
        }


SCALED: dict[type[nn.Module], str] = {
    nn.Linear: "out_features",
    nn.Embedding: "embedding_dim",
    _ConvNd: "out_channels",
}
"""Attribute with the number of outputs, by layer type.

A layer of these types, or of type ``nn.MultiheadAttention``, gets a Scaler if it has fewer outputs in the slice. For
another layer type, add its attribute, as in ``SCALED[Conv1D] = "nf"`` (GPT-2). The outputs of such a layer must be
products of its inputs and parameters.
"""


def attach_scaler(full_model: nn.Module, model: nn.Module, ratio: Fraction) -> None:
    """Add a Scaler, as a forward hook, to each layer that has fewer outputs than in the full model; see ``SCALED``.

    ``ratio`` is the rate of the model divided by the global rate.
    """
    if ratio > 1:
        raise ConfigError(f"the rate is {float(ratio):g} times the global rate; the global rate is the largest")
    hook = partial(_scale, Scaler(ratio))
    layers = dict(model.named_modules())
    for name, layer in full_model.named_modules():
        outputs = _outputs(layer)
        if outputs is not None and outputs != _outputs(layers[name]):
            layers[name].register_forward_hook(hook)


def _scale(scaler: Scaler, layer: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
    scale = scaler.train(layer.training)
    return (scale(output[0]), *output[1:]) if isinstance(output, tuple) else scale(output)


def _outputs(layer: nn.Module) -> int | None:
    """Return a layer's number of outputs, or None if layers of its type get no Scaler."""
    if isinstance(layer, nn.MultiheadAttention):
        layer = layer.out_proj
    # Not the weight's shape, because the weight may be parametrised.
    return next((getattr(layer, attribute) for kind, attribute in SCALED.items() if isinstance(layer, kind)), None)


def adjust_layers(full_model: nn.Module, model: nn.Module) -> None:
    """Update widths such as ``in_features`` in the layers of a slice, by the functions registered with ``adjust``.

    The functions are for widths that the model's code does not read. A trace finds only widths that the code reads.
    """
    before = dict(full_model.named_modules())
    with evaluating(model):  # in training, reading a weight with spectral norm would update its vectors
        for name, layer in model.named_modules():
            rule = ADJUSTMENTS.find(layer)
            new, old = (
                [tensor.shape for tensor in (*module.parameters(), *module.buffers())]
                for module in (layer, before[name])
            )
            if rule is not None and new != old:
                rule(layer)


_LENGTHS: Mapping[type[nn.Module], Mapping[str, tuple[str, int]]] = {
    nn.Linear: {"out_features": ("weight", 0), "in_features": ("weight", 1)},
    nn.Embedding: {"embedding_dim": ("weight", 1)},
    nn.EmbeddingBag: {"embedding_dim": ("weight", 1)},
    nn.GroupNorm: {"num_channels": ("weight", 0)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
    nn.RNNCellBase: {"input_size": ("weight_ih", 1)},
}
"""Width attributes by layer type, each with the parameter and the index of the axis that has this length."""


@adjust(*_LENGTHS)
def _lengths(layer: nn.Module) -> None:
    lengths = next(lengths_of for kind, lengths_of in _LENGTHS.items() if isinstance(layer, kind))
    for number, (name, axis) in lengths.items():
        setattr(layer, number, getattr(layer, name).shape[axis])


@adjust(_ConvNd)
def _convolution(layer: _ConvNd) -> None:
    outputs, inputs = layer.weight.shape[:2]
    if layer.transposed:
        layer.in_channels, layer.out_channels = outputs, inputs * layer.groups
    else:
        layer.in_channels, layer.out_channels = inputs * layer.groups, outputs


@adjust(_NormBase)
def _channels(layer: _NormBase) -> None:
    tensor = layer.running_mean if layer.weight is None else layer.weight
    if tensor is not None:
        layer.num_features = len(tensor)


@adjust(nn.MultiheadAttention)
def _attention(layer: nn.MultiheadAttention) -> None:
    layer.embed_dim = layer.out_proj.weight.shape[1]
    layer.head_dim = layer.embed_dim // layer.num_heads
    layer.kdim = layer.vdim = layer.embed_dim
    if not layer._qkv_same_embed_dim:
        layer.kdim, layer.vdim = layer.k_proj_weight.shape[1], layer.v_proj_weight.shape[1]
