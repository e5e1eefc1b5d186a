"""Batch norm with fixed statistics as part of the layer before it.

In evaluation batch norm multiplies each channel by a constant and adds another. Where it directly follows a convolution
or a linear layer, and nothing else uses that layer's output, both constants go into the layer's weight and bias, and
the norm is gone. Which norms these are is read from the program that the model runs, not from its modules: a Scaler
between the two, which does nothing in evaluation, is no obstacle, and a residual connection is one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

_aten = torch.ops.aten
_OTHERS = {
    _aten.elu_.default: _aten.elu.default,
    _aten.hardsigmoid_.default: _aten.hardsigmoid.default,
    _aten.hardswish_.default: _aten.hardswish.default,
    _aten.hardtanh_.default: _aten.hardtanh.default,
    _aten.leaky_relu_.default: _aten.leaky_relu.default,
    _aten.relu6_.default: _aten.relu6.default,
    _aten.relu_.default: _aten.relu.default,
    _aten.silu_.default: _aten.silu.default,
}


def out_of_place(module: fx.GraphModule) -> int:
    """Change a graph's activations; return how many there were that nothing else could notice.

    Nothing notices where the input is a tensor of its own, no view, and has no other user.
    """
    changed = 0
    for node in module.graph.nodes:
        other = _OTHERS.get(node.target)
        before = node.args[0] if other else None
        if isinstance(before, fx.Node) and before.target in (*LAYERS, NORM) and len(before.users) == 1:
            node.target = other
            changed += 1
    module.recompile()
    return changed


LAYERS = (
    _aten.conv1d.default,
    _aten.conv1d.padding,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.conv3d.default,
    _aten.conv3d.padding,
    _aten.linear.default,
)
"""What a norm can become part of."""

NORM = _aten.batch_norm.default


@dataclass(frozen=True, slots=True)
class Folding:
    """What became of a model's batch norm layers.

    Attributes
    ----------
    folded
        By name, the layer that each has become part of.
    kept
        Those that follow no such layer; each is still one multiplication and one addition a value.
    """

    folded: Mapping[str, str]
    kept: tuple[str, ...]


def fold_batch_norms(program: ExportedProgram) -> tuple[fx.GraphModule, Folding]:
    """Return the module of a program with its batch norm layers folded where that is exact, and which they are.

    The program is not changed.
    """
    # Each call gives a new module. It shares the program's tensors, which nothing here changes.
    module = program.module(check_guards=False)
    folded: dict[str, str] = {}
    kept: list[str] = []
    for norm in [node for node in module.graph.nodes if node.target is NORM]:
        layer = _foldable(norm)
        name = _name(norm)
        if layer is None:
            kept.append(name)
        else:
            folded[name] = _fold(module, layer, norm)
    _drop_unused(module)
    return module, Folding(folded, tuple(kept))


def _foldable(norm: fx.Node) -> fx.Node | None:
    """Return the layer before a norm if the norm can become part of it."""
    layer: Any = norm.args[0]
    if not isinstance(layer, fx.Node) or layer.target not in LAYERS or len(layer.users) > 1:
        return None
    own, constants = _given(layer, 1, 3), _given(norm, 1, 5)
    held = all(node.op == "get_attr" for node in (*own, *constants)) and len(_given(norm, 3, 5)) == 2
    if not held or any(len(node.users) > 1 for node in own):
        return None  # computed, or shared with another layer
    # A norm's channels are axis 1; those of a linear layer are the last axis, of a convolution the last but its space.
    return layer if layer.meta["val"].dim() == own[0].meta["val"].dim() else None


def _fold(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> str:
    """Put a norm into the layer before it; return the layer's name."""
    arguments: Any = norm.args
    weight, *bias = _given(layer, 1, 3)
    gain, shift = (None if node is None else _value(module, node) for node in arguments[1:3])
    statistics = _value(module, arguments[3]), _value(module, arguments[4])
    own_bias = _value(module, bias[0]) if bias else None
    new_weight, new_bias = folded_constants(
        _value(module, weight), own_bias, (gain, shift), statistics, epsilon=arguments[7]
    )
    owner, name = _place(weight)
    place = module.get_submodule(owner)
    place.register_parameter(name, _constant(new_weight))
    if bias:
        own_place, own_name = _place(bias[0])
        module.get_submodule(own_place).register_parameter(own_name, _constant(new_bias))
    else:
        added = "bias" if getattr(place, "bias", None) is None else "folded_bias"
        place.register_parameter(added, _constant(new_bias))
        with module.graph.inserting_before(layer):
            node = module.graph.get_attr(".".join(filter(None, [owner, added])))
        layer.args = (*layer.args[:2], node, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    module.graph.erase_node(norm)
    return owner


def folded_constants(
    weight: Tensor,
    bias: Tensor | None,
    affine: tuple[Tensor | None, Tensor | None],
    statistics: tuple[Tensor, Tensor],
    *,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of a layer with a norm behind it; computed in float64, rounded once.

    Parameters
    ----------
    weight, bias
        The layer's own; the channels that it puts out are the weight's axis 0.
    affine
        The norm's factor and summand of each channel.
    statistics
        The norm's mean and variance of each channel.
    epsilon
        What the norm adds to the variance.
    """
    mean, variance = (one.double() for one in statistics)
    gain, shift = (None if one is None else one.double() for one in affine)
    scale = (variance + epsilon).rsqrt()  # (channels,)
    scale = scale if gain is None else scale * gain
    moved = (-mean if bias is None else bias.double() - mean) * scale
    moved = moved if shift is None else moved + shift
    return (weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype), moved.to(weight.dtype)


def _drop_unused(module: fx.GraphModule) -> None:
    """Remove what the graph computes or holds for nothing."""
    module.graph.eliminate_dead_code()
    module.recompile()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)


def _name(norm: fx.Node) -> str:
    """Return the name of a norm's layer: that of the module which holds its statistics."""
    held = [node for node in _given(norm, 3, 4) if node.op == "get_attr"]
    return _place(held[0])[0] if held else norm.name


def _given(node: fx.Node, first: int, end: int) -> list[fx.Node]:
    """Return those of a node's arguments that are there; of a layer its weight and bias."""
    return [one for one in node.args[first:end] if isinstance(one, fx.Node)]


def _place(node: fx.Node) -> tuple[str, str]:
    """Return the module that a tensor is in, and its name there."""
    owner, _, name = str(node.target).rpartition(".")
    return owner, name


def _value(module: fx.GraphModule, node: fx.Node) -> Tensor:
    owner, name = _place(node)
    value: Tensor = getattr(module.get_submodule(owner), name)
    return value.detach()


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
