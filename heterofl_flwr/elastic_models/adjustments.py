"""Numbers that layers hold about their own widths, set right after their parameters were cut.

A trace finds the numbers that a model's code uses. These are the others: torch's layers say how wide they are, though
they compute with what their weights have.
"""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from heterofl_flwr.elastic_models.rules import ADJUSTMENTS, adjust


def adjust_layers(full: nn.Module, model: nn.Module) -> None:
    """Set right what those layers of a slice hold whose own tensors are smaller than in the full model."""
    before = dict(full.named_modules())
    for name, layer in model.named_modules():
        rule = ADJUSTMENTS.find(layer)
        if rule is not None and _shapes(layer) != _shapes(before[name]):
            rule(layer)


def _shapes(layer: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in (*layer.parameters(), *layer.buffers())]


@adjust(nn.Linear)
def _linear(layer: nn.Linear) -> None:
    layer.out_features, layer.in_features = layer.weight.shape


@adjust(nn.Bilinear)
def _bilinear(layer: nn.Bilinear) -> None:
    layer.out_features, layer.in1_features, layer.in2_features = layer.weight.shape


@adjust(_ConvNd)
def _convolution(layer: _ConvNd) -> None:
    first, second = layer.weight.shape[:2]
    if layer.transposed:
        layer.in_channels, layer.out_channels = first, second * layer.groups
    else:
        layer.in_channels, layer.out_channels = second * layer.groups, first


@adjust(_NormBase)
def _channels(layer: _NormBase) -> None:
    held = layer.running_mean if layer.weight is None else layer.weight
    if held is not None:
        layer.num_features = len(held)


@adjust(nn.GroupNorm)
def _group_norm(layer: nn.GroupNorm) -> None:
    if layer.weight is not None:
        layer.num_channels = len(layer.weight)


@adjust(nn.Embedding, nn.EmbeddingBag)
def _embedding(layer: nn.Embedding | nn.EmbeddingBag) -> None:
    layer.embedding_dim = layer.weight.shape[1]


@adjust(nn.RNNBase)
def _recurrent(layer: nn.RNNBase) -> None:
    shapes = {name: parameter.shape for name, parameter in layer.named_parameters()}
    rows, layer.input_size = shapes["weight_ih_l0"]
    layer.hidden_size = rows // {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    layer.proj_size = shapes["weight_hr_l0"][0] if layer.proj_size else 0


@adjust(nn.RNNCellBase)
def _cell(layer: nn.RNNCellBase) -> None:
    layer.input_size, layer.hidden_size = layer.weight_ih.shape[1], layer.weight_hh.shape[1]


@adjust(nn.MultiheadAttention)
def _attention(layer: nn.MultiheadAttention) -> None:
    layer.embed_dim = layer.out_proj.weight.shape[1]
    layer.head_dim = layer.embed_dim // layer.num_heads
    layer.kdim = layer.vdim = layer.embed_dim
    if not layer._qkv_same_embed_dim:
        layer.kdim, layer.vdim = layer.k_proj_weight.shape[1], layer.v_proj_weight.shape[1]
