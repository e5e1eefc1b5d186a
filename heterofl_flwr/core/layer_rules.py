"""Slicing rules by layer type: which entries of a layer's parameters a smaller layer keeps."""

import re
from collections.abc import Callable, Mapping

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList

from heterofl_flwr.common.errors import ShapeError
from heterofl_flwr.core.axes import Axes, PrefixAxis, axes_between
from heterofl_flwr.core.rule_registry import Registry, Rule

RULES = Registry("register")
"""Slicing rules by layer type."""

# Older norms and pruning of torch.nn.utils replace ``weight`` by ``weight_g``, ``weight_v`` or ``weight_orig``.
_REPLACED = re.compile(r"(weight\w*)_(?:g|v|orig)$")


def register(*layer_types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register the decorated function as the slicing rule of layer types and their subclasses.

    The rule takes the global layer and the local layer, and returns a dictionary from parameter name to axes. A
    child layer needs no rule if this dictionary has all its parameters, under names such as ``"linear_q.weight"``.
    A new rule replaces an earlier rule for the same layer type. An example::

        @register(MyLayer)
        def my_layer(full: MyLayer, local: MyLayer) -> dict[str, Axes]:
            return {"kernel": axes_between(full.kernel.shape, local.kernel.shape, parts={0: full.heads})}
    """
    return RULES.add(*layer_types)


def axes_by_name(
    full_layer: nn.Module, local: nn.Module, parts: Callable[[str], Mapping[int, int]], *, recurse: bool = True
) -> dict[str, Axes]:
    """Return the axes of each parameter of a layer, for a slicing rule.

    ``parts(name)`` returns the number of equal parts, such as heads, by index of the axis. The slice keeps the first
    entries of each part. ``recurse`` includes the parameters of child layers.
    """
    full_parameters, parameters = (dict(layer.named_parameters(recurse=recurse)) for layer in (full_layer, local))
    is_cut = any(parameter.shape != parameters[name].shape for name, parameter in full_parameters.items())
    if recurse and is_cut and any(isinstance(child, ParametrizationList) for child in full_layer.modules()):
        raise ShapeError(
            "the tensors of its parametrizations (weight_norm, say) do not say where its gates, heads or groups are: "
            "remove the parametrizations from this layer"
        )
    return {
        name: axes_between(parameter.shape, parameters[name].shape, parts(_REPLACED.sub(r"\1", name)))
        for name, parameter in full_parameters.items()
    }


@register(nn.Linear, nn.Embedding, nn.EmbeddingBag)
@register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@register(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, _InstanceNorm, nn.PReLU)
def prefix_of_every_axis(full_layer: nn.Module, local: nn.Module) -> dict[str, Axes]:
    """Slicing rule: keep the first entries of every axis."""
    return axes_by_name(full_layer, local, lambda name: {}, recurse=False)


@register(_ConvNd)
def convolution(full_layer: _ConvNd, local: _ConvNd) -> dict[str, Axes]:
    """Slicing rule of convolutions: keep the first channels, and the full kernel.

    A smaller grouped convolution has fewer groups, each of the full size.
    """
    if full_layer.kernel_size != local.kernel_size:
        raise ShapeError(f"kernel sizes {full_layer.kernel_size} and {local.kernel_size} differ; kernels are never cut")
    sizes = [(layer.in_channels // layer.groups, layer.out_channels // layer.groups) for layer in (full_layer, local)]
    if max(full_layer.groups, local.groups) > 1 and sizes[0] != sizes[1]:
        raise ShapeError(
            f"{full_layer.in_channels} to {full_layer.out_channels} channels in {full_layer.groups} groups became "
            f"{local.in_channels} to {local.out_channels} in {local.groups}: groups must shrink with the channels and "
            f"keep their size"
        )
    if full_layer.groups != local.groups and sizes[0] != (1, 1):
        return _prefix_only(axes_by_name(full_layer, local, lambda name: {}))
    return prefix_of_every_axis(full_layer, local)


def _prefix_only(axes: Mapping[str, Axes]) -> dict[str, Axes]:
    """Return ``axes`` with each sliced axis as a ``PrefixAxis``, for layers that drop groups, heads or channels."""
    return {
        name: tuple(
            PrefixAxis(axis.size, axis.local_size, axis.parts) if axis.local_size < axis.size else axis
            for axis in of_name
        )
        for name, of_name in axes.items()
    }


@register(ParametrizationList)
def parametrized_tensor(full_layer: ParametrizationList, local: ParametrizationList) -> dict[str, Axes]:
    """Slicing rule of parametrizations, such as weight norm: keep the first entries of every axis."""
    # Buffers are not sent. Clients can recompute those of spectral norm, but not other buffers, such as a random basis.
    if any(not isinstance(step, _SpectralNorm) and list(step.buffers()) for step in full_layer):
        raise ShapeError(f"{full_layer[0]} has a buffer, which is not sent: clients would compute another tensor")
    return prefix_of_every_axis(full_layer, local)


# Parameters with an axis that consists of heads: (axis, number of times that the sequence of heads is repeated).
_HEADED = {
    "in_proj_weight": (0, 3),
    "in_proj_bias": (0, 3),
    "q_proj_weight": (0, 1),
    "k_proj_weight": (0, 1),
    "v_proj_weight": (0, 1),
    "bias_k": (2, 1),
    "bias_v": (2, 1),
    "out_proj.weight": (1, 1),
}


@register(nn.MultiheadAttention)
def multihead_attention(full_layer: nn.MultiheadAttention, local: nn.MultiheadAttention) -> dict[str, Axes]:
    """Slicing rule of attention: keep the first entries of each head.

    If the local layer has fewer heads, keep the first heads in full.
    """
    dropped = full_layer.num_heads != local.num_heads
    if dropped and full_layer.head_dim != local.head_dim:
        raise ShapeError(
            f"{full_layer.num_heads} heads of {full_layer.head_dim} became {local.num_heads} heads of "
            f"{local.head_dim}: keep either the number of heads or their dimension"
        )
    heads = 1 if dropped else full_layer.num_heads
    parts = {name: {axis: heads * times} for name, (axis, times) in _HEADED.items()}
    axes = axes_by_name(full_layer, local, lambda name: parts.get(name, {}))
    return _prefix_only(axes) if dropped else axes


_GATES: dict[type[nn.Module], int] = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.RNN: 1, nn.RNNCell: 1}


@register(*_GATES)
def recurrent(full_layer: nn.RNNBase | nn.RNNCellBase, local: nn.RNNBase | nn.RNNCellBase) -> dict[str, Axes]:
    """Slicing rule of recurrent layers: keep the first rows of each gate.

    In a bidirectional network, layers after the first keep the first inputs from each direction.
    """
    gates = next(number for kind, number in _GATES.items() if isinstance(full_layer, kind))
    directions = 2 if getattr(full_layer, "bidirectional", False) else 1

    def parts(name: str) -> dict[int, int]:
        later = re.fullmatch(r"weight_ih_l[1-9]\d*(_reverse)?", name)
        # The projection (weight_hr) has no gates: its rows are the projected units.
        return ({} if name.startswith("weight_hr") else {0: gates}) | ({1: directions} if later else {})

    return axes_by_name(full_layer, local, parts)
