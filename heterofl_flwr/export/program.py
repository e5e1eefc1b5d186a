"""From a model to the program that it runs in evaluation, which needs none of its code.

In evaluation batch norm multiplies each channel by a constant and adds another. Where it directly follows a convolution
or a linear layer, and nothing else uses that layer's output, both constants go into the layer's weight and bias, and
the norm is gone. Which norms these are is read from the program, not from the model's modules: a Scaler between the
two, which does nothing in evaluation, is no obstacle, and a residual connection is one.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from heterofl_flwr.errors import ConfigError, HeteroFLError, first_line
from heterofl_flwr.export.checks import Axes, Inputs
from heterofl_flwr.nn.static_norm import batch_norms

_aten = torch.ops.aten
_NORM = _aten.batch_norm.default
_CONVOLUTIONS = (_aten.conv1d, _aten.conv2d, _aten.conv3d)
_LAYERS = (_aten.linear.default, *(one.default for one in _CONVOLUTIONS), *(one.padding for one in _CONVOLUTIONS))
_IN_PLACE = ("elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "relu6", "relu", "silu")
_OUT_OF_PLACE = {getattr(_aten, f"{name}_").default: getattr(_aten, name).default for name in _IN_PLACE}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output of a program; an axis of any length has its name in place of a length."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Folding:
    """What became of a model's batch norm layers: by name the layer that each is now part of, and those that remain."""

    folded: Mapping[str, str]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A model on the CPU, in evaluation mode, and the program made of it."""

    model: nn.Module
    program: ExportedProgram
    folding: Folding
    symbols: dict[str, str]  # torch's name of each axis of any length, and ours
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def trace(model: nn.Module, inputs: Inputs, axes: Axes, output_names: Sequence[str]) -> Traced:
    """Return a model's program. The model is not changed.

    Raises
    ------
    ConfigError
        If batch norm lacks its statistics.
    HeteroFLError
        If ``torch.export`` cannot follow the model, or an axis cannot have any length.
    """
    own = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    without = [name for name, layer in batch_norms(own).items() if layer.running_mean is None]
    if without:
        raise ConfigError(
            f"batch norm has no statistics in {len(without)} layers ({', '.join(without[:3])}), so what the model says "
            f"of an example would depend on the others beside it: measure them with "
            f"heterofl_flwr.nn.collect_moments and export heterofl_flwr.nn.with_static_norm(model, moments)"
        )
    # Zeros, because a program keeps its example, and nobody's data may travel.
    example = inputs.map(lambda one: one.new_zeros([2, *one.shape[1:]] if 0 in axes else one.shape))
    program = _program(own, example, axes)
    module, folding = fold_batch_norms(program)
    if out_of_place(module) or folding.folded:
        program = _program(module, example, axes)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # a path of somebody's machine
    nodes = {node.name: node for node in program.graph.nodes}
    names = [str(name) for name in program.graph_signature.user_inputs]
    symbols = _symbols([(name, nodes[name].meta["val"].shape) for name in names], axes)

    def port(node: str, name: str) -> Port:
        value = nodes[node].meta["val"]
        shape = tuple(_length(str(length), symbols) for length in value.shape)
        return Port(name, str(value.dtype).removeprefix("torch."), shape)

    results = [str(name) for name in program.graph_signature.user_outputs]
    called = [*output_names, *(f"output{number}" for number in range(len(output_names), len(results)))]
    outputs = tuple(map(port, results, called))
    return Traced(own, program, folding, symbols, tuple(port(name, name) for name in names), outputs)


def _program(model: nn.Module, example: Inputs, axes: Axes) -> ExportedProgram:
    """Trace a model. Axes are left to torch, which finds out how long they may be; ``_symbols`` reads what it found."""
    shapes = {name: {axis: Dim.AUTO for axis in axes if axis < one.dim()} for name, one in example.tensors.items()}
    given = example.given
    args, named = ((), given) if isinstance(given, dict) else (given, {})
    # Of a module made from a graph, torch matches arguments with the names of its signature; of positional ones not.
    dynamic = shapes if example.named else tuple(shapes.values())
    try:
        return torch.export.export(model, args, named, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch's own, and whatever the model's code raises
        raise HeteroFLError(
            f"torch.export cannot make a program of {type(model).__name__}: {first_line(error)}. What a "
            f"model computes may not depend on its inputs' values; rewrite what does with torch's own operators"
        ) from error


def _symbols(shapes: Sequence[tuple[str, Sequence[object]]], axes: Axes) -> dict[str, str]:
    """Return torch's name of each axis of any length, and ours."""
    found: dict[str, str] = {}
    for name, shape in shapes:
        for axis, called in axes.items():
            length = str(shape[axis]) if axis < len(shape) else ""
            if length.isdecimal():
                raise HeteroFLError(
                    f"axis {axis} ({called}) of the input {name} cannot have any length: the model's code makes it "
                    f"{length}. Leave it out of dynamic (dynamic={{}} fixes all lengths to those of the inputs given), "
                    f"or take lengths from the input's shape in the model"
                )
            if length:
                found.setdefault(length, called)
    return found


def _length(expression: str, symbols: dict[str, str]) -> int | str:
    for symbol, name in symbols.items():
        expression = re.sub(rf"\b{symbol}\b", name, expression)
    return int(expression) if expression.isdecimal() else expression


def out_of_place(module: fx.GraphModule) -> int:
    """Change a graph's activations in place where nothing else could notice; return their number.

    Nothing notices where the input is a tensor of its own, no view, and has no other user.
    """
    changed = 0
    for node in module.graph.nodes:
        before = node.args[0] if node.target in _OUT_OF_PLACE else None
        if isinstance(before, fx.Node) and before.target in (*_LAYERS, _NORM) and len(before.users) == 1:
            node.target = _OUT_OF_PLACE[node.target]
            changed += 1
    module.recompile()
    return changed


def fold_batch_norms(program: ExportedProgram) -> tuple[fx.GraphModule, Folding]:
    """Return the module of a program with its batch norm layers folded where that is exact, and which they are.

    The program is not changed.
    """
    # Each call gives a new module. It shares the program's tensors, which nothing here changes.
    module = program.module(check_guards=False)
    folded: dict[str, str] = {}
    kept: list[str] = []
    for norm in [node for node in module.graph.nodes if node.target is _NORM]:
        statistics = [node for node in _nodes_in(norm, 3, 4) if node.op == "get_attr"]
        name = _place(statistics[0])[0] if statistics else norm.name
        layer = _foldable(norm)
        if layer is None:
            kept.append(name)
        else:
            folded[name] = _fold(module, layer, norm)
    module.graph.eliminate_dead_code()
    module.recompile()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)
    return module, Folding(folded, tuple(kept))


def _foldable(norm: fx.Node) -> fx.Node | None:
    """Return the layer before a norm if the norm can become part of it."""
    layer: Any = norm.args[0]
    if not isinstance(layer, fx.Node) or layer.target not in _LAYERS or len(layer.users) > 1:
        return None
    own, constants = _nodes_in(layer, 1, 3), _nodes_in(norm, 1, 5)
    held = all(node.op == "get_attr" for node in (*own, *constants)) and len(_nodes_in(norm, 3, 5)) == 2
    if not held or any(len(node.users) > 1 for node in own):
        return None  # computed, or shared with another layer
    # A norm's channels are axis 1; those of a linear layer are the last axis, of a convolution the last but its space.
    return layer if layer.meta["val"].dim() == own[0].meta["val"].dim() else None


def _fold(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> str:
    """Put a norm into the layer before it; return the layer's name."""
    arguments: Any = norm.args

    def value(node: Any) -> Any:
        return None if node is None else getattr(module.get_submodule(_place(node)[0]), _place(node)[1]).detach()

    weight, *bias = _nodes_in(layer, 1, 3)
    gain, shift, mean, variance = map(value, arguments[1:5])
    own_bias = value(bias[0]) if bias else None
    constants = fold_constants(value(weight), own_bias, (gain, shift), (mean, variance), epsilon=arguments[7])
    owner, name = _place(weight)
    has_bias = getattr(module.get_submodule(owner), "bias", None) is not None
    places = [(owner, name), _place(bias[0]) if bias else (owner, "folded_bias" if has_bias else "bias")]
    for (at, called), tensor in zip(places, constants, strict=True):
        module.get_submodule(at).register_parameter(called, nn.Parameter(tensor, requires_grad=False))
    if not bias:
        with module.graph.inserting_before(layer):
            node = module.graph.get_attr(".".join(filter(None, places[1])))
        layer.args = (*layer.args[:2], node, *layer.args[3:])
    norm.replace_all_uses_with(layer)
    module.graph.erase_node(norm)
    return owner


def fold_constants(
    weight: Tensor,
    bias: Tensor | None,
    affine: tuple[Tensor | None, Tensor | None],
    statistics: tuple[Tensor, Tensor],
    *,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer with a norm (factor, summand; mean, variance) behind it, rounded once."""
    mean, variance = (one.double() for one in statistics)
    gain, shift = (None if one is None else one.double() for one in affine)
    scale = (variance + epsilon).rsqrt()  # (channels,)
    scale = scale if gain is None else scale * gain
    moved = (-mean if bias is None else bias.double() - mean) * scale
    moved = moved if shift is None else moved + shift
    return (weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype), moved.to(weight.dtype)


def _nodes_in(node: fx.Node, first: int, end: int) -> list[fx.Node]:
    """Return those of a node's arguments that are nodes; of a layer its weight and bias."""
    return [one for one in node.args[first:end] if isinstance(one, fx.Node)]


def _place(node: fx.Node) -> tuple[str, str]:
    """Return the module that a tensor is in, and its name there."""
    owner, _, name = str(node.target).rpartition(".")
    return owner, name
