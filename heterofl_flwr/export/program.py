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
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils import fuse_linear_bn_weights
from torch.utils._pytree import tree_map

from heterofl_flwr.errors import ConfigError, HeteroFLError, first_line
from heterofl_flwr.export.checks import Axes, Inputs
from heterofl_flwr.nn.execution import named_tensors
from heterofl_flwr.nn.static_norm import batch_norms

_aten = torch.ops.aten
_NORM = _aten.batch_norm.default
_CONVOLUTIONS = (_aten.conv1d, _aten.conv2d, _aten.conv3d)
_LAYERS = (_aten.linear.default, *(one.default for one in _CONVOLUTIONS), *(one.padding for one in _CONVOLUTIONS))
_IN_PLACE = ("elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "relu6", "relu", "silu")
_OUT_OF_PLACE = {getattr(_aten, f"{name}_").default: getattr(_aten, name).default for name in _IN_PLACE}

Port = Mapping[str, Any]
"""An input or output: ``name``, ``dtype`` and ``shape``; an axis of any length has its name in place of a length."""

Folding = Mapping[str, Any]
"""Batch norm layers: ``folded``, by name the layer that each is now part of, and ``kept``, those that remain."""


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A model on the CPU, in evaluation mode, and the program made of it."""

    model: nn.Module
    program: ExportedProgram
    folding: Folding
    symbols: Mapping[str, str]  # torch's name of each axis of any length, and ours
    inputs: Sequence[Port]
    outputs: Sequence[Port]


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
    example: Inputs = tree_map(lambda one: one.new_zeros([2, *one.shape[1:]] if 0 in axes else one.shape), inputs)
    program = _program(own, example, axes)
    module, folding = fold_batch_norms(program)
    if out_of_place(module) or folding["folded"]:
        program = _program(module, example, axes)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # a path of somebody's machine
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    names, results = ([str(name) for name in found] for found in (signature.user_inputs, signature.user_outputs))
    symbols = _symbols({name: values[name].shape for name in names}, axes)

    def port(node: str, name: str) -> Port:
        lengths = [rename(str(length), symbols) for length in values[node].shape]
        shape = tuple(int(length) if length.isdecimal() else length for length in lengths)
        return {"name": name, "dtype": str(values[node].dtype).removeprefix("torch."), "shape": shape}

    called = [*output_names, *(f"output{number}" for number in range(len(output_names), len(results)))]
    return Traced(own, program, folding, symbols, tuple(map(port, names, names)), tuple(map(port, results, called)))


def _program(model: nn.Module, example: Inputs, axes: Axes) -> ExportedProgram:
    """Trace a model. Axes are left to torch, which finds out how long they may be; ``_symbols`` reads what it found."""
    dynamic = tree_map(lambda one: {axis: Dim.AUTO for axis in axes if axis < one.dim()}, example)
    args, named = ((), example) if isinstance(example, dict) else (example, {})
    try:
        return torch.export.export(model, args, named, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch's own, and whatever the model's code raises
        remedy = (
            "What a model computes may not depend on its inputs' values; rewrite what does with torch's own operators"
        )
        if "in output, which is not a known type" in str(error):
            remedy = (
                "A model may return tensors alone; for a language model of transformers, set config.use_cache = False"
            )
        raise HeteroFLError(
            f"torch.export cannot make a program of {type(model).__name__}: {first_line(error)}. {remedy}"
        ) from error


def _symbols(shapes: Mapping[str, Sequence[object]], axes: Axes) -> dict[str, str]:
    """Return torch's name of each axis of any length, and ours."""
    found: dict[str, str] = {}
    for name, shape in shapes.items():
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


def rename(length: str, symbols: Mapping[str, str]) -> str:
    """Return a length with our names of axes in place of torch's."""
    return re.sub(r"\w+", lambda found: symbols.get(found[0], found[0]), length)


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
        mean = norm.args[3]
        measured = isinstance(mean, fx.Node) and mean.op == "get_attr"
        name = str(mean.target).rpartition(".")[0] if measured else norm.name
        layer = _foldable(norm)
        if layer is None:
            kept.append(name)
        else:
            folded[name] = _fold(module, layer, norm)
    module.graph.eliminate_dead_code()
    module.recompile()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in named_tensors(module):
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)
    return module, {"folded": folded, "kept": tuple(kept)}


def _foldable(norm: fx.Node) -> fx.Node | None:
    """Return the layer before a norm if the norm can become part of it."""
    layer: Any = norm.args[0]
    if not isinstance(layer, fx.Node) or layer.target not in _LAYERS or len(layer.users) > 1:
        return None
    own, constants, statistics = (
        [one for one in found if isinstance(one, fx.Node)]
        for found in (layer.args[1:3], norm.args[1:5], norm.args[3:5])
    )
    held = all(node.op == "get_attr" for node in (*own, *constants)) and len(statistics) == 2
    if not held or any(len(node.users) > 1 for node in own):
        return None  # computed, or shared with another layer
    # A norm's channels are axis 1; those of a linear layer are the last axis, of a convolution the last but its space.
    return layer if layer.meta["val"].dim() == own[0].meta["val"].dim() else None


def _fold(module: fx.GraphModule, layer: fx.Node, norm: fx.Node) -> str:
    """Put a norm into the layer before it, rounded once; return the layer's name."""

    def value(node: Any) -> Any:
        return None if node is None else attrgetter(node.target)(module).detach().double()

    at: Any = layer.args[1]
    bias: Any = layer.args[2] if len(layer.args) > 2 else None
    arguments: Any = norm.args
    gain, shift, mean, variance = map(value, arguments[1:5])
    gain = torch.ones_like(mean) if gain is None else gain
    shift = torch.zeros_like(mean) if shift is None else shift
    rows = value(at).flatten(1)  # (outputs, inputs * kernel)
    new_rows, new_bias = fuse_linear_bn_weights(rows, value(bias), mean, variance, arguments[7], gain, shift)
    owner = at.target.rpartition(".")[0]
    weight, held = attrgetter(at.target)(module), module.get_submodule(owner)
    other = "folded_bias" if getattr(held, "bias", None) is not None else "bias"
    bias_target = f"{owner}.{other}".lstrip(".") if bias is None else bias.target
    for target, tensor in ((at.target, new_rows.view_as(weight)), (bias_target, new_bias)):
        place, _, name = target.rpartition(".")
        new = nn.Parameter(tensor.detach().to(weight.dtype), requires_grad=False)
        module.get_submodule(place).register_parameter(name, new)
    if bias is None:
        with module.graph.inserting_before(layer):
            layer.args = (*layer.args[:2], module.graph.get_attr(bias_target), *layer.args[3:])
    norm.replace_all_uses_with(layer)
    module.graph.erase_node(norm)
    return str(owner)
