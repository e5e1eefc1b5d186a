"""From a model to the program that it runs in evaluation, which needs none of its code."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.export.folding import Folding, fold_batch_norms, out_of_place
from heterofl_flwr.export.inputs import Axes, Inputs
from heterofl_flwr.nn.static_norm import batch_norms

Shape = tuple[int | str, ...]
"""Lengths; an axis of any length is told by its name."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output of a program."""

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """A model, and the program made of it.

    Attributes
    ----------
    model
        A copy on the CPU, in evaluation mode.
    program
        What it runs, batch norm folded.
    folding
        What became of batch norm.
    symbols
        What ``torch`` calls each axis of any length, and what it is called here.
    inputs, outputs
        What it takes and gives.
    """

    model: nn.Module
    program: ExportedProgram
    folding: Folding
    symbols: dict[str, str]
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
    _check_norms(own)
    example = inputs.traced_with(axes)
    program = _program(own, example, axes)
    module, folding = fold_batch_norms(program)
    if out_of_place(module) or folding.folded:
        program = _program(module, example, axes)
    _forget_origins(program)
    symbols = _symbols(program, example, axes)
    names = tuple(program.graph_signature.user_inputs)
    takes = tuple(_port(program, str(name), str(name), symbols) for name in names)
    found = tuple(program.graph_signature.user_outputs)
    given = [*output_names, *(f"output{number}" for number in range(len(output_names), len(found)))]
    gives = tuple(_port(program, str(node), name, symbols) for node, name in zip(found, given, strict=False))
    return Traced(own, program, folding, symbols, takes, gives)


def _check_norms(model: nn.Module) -> None:
    without = [name for name, layer in batch_norms(model).items() if layer.running_mean is None]
    if without:
        raise ConfigError(
            f"batch norm has no statistics in {len(without)} layers ({', '.join(without[:3])}), so what the model says "
            f"of an example would depend on the others beside it: measure them with "
            f"heterofl_flwr.nn.collect_moments and export heterofl_flwr.nn.with_static_norm(model, moments)"
        )


def _program(model: nn.Module, example: Inputs, axes: Axes) -> ExportedProgram:
    """Trace a model. Axes are left to torch, which finds out how long they may be; ``_symbols`` looks what it found."""
    shapes = {name: {axis: Dim.AUTO for axis in axes if axis < one.dim()} for name, one in example.tensors.items()}
    given = example.given
    args, named = ((), given) if isinstance(given, dict) else (given, {})
    # Of a module made from a graph, torch matches arguments with the names of its signature; of positional ones not.
    dynamic = shapes if example.named else tuple(shapes.values())
    try:
        return torch.export.export(model, args, named, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch's own, and whatever the model's code raises
        first = next(iter(str(error).splitlines()), "")
        raise HeteroFLError(
            f"torch.export cannot make a program of {type(model).__name__}: {type(error).__name__}: {first}. What a "
            f"model computes may not depend on its inputs' values; rewrite what does with torch's own operators"
        ) from error


def _symbols(program: ExportedProgram, example: Inputs, axes: Axes) -> dict[str, str]:
    """Return torch's name of each axis of any length, and ours; refuse one whose length has become fixed."""
    found: dict[str, str] = {}
    nodes = _nodes(program)
    for name, tensor in zip(program.graph_signature.user_inputs, example.tensors.values(), strict=True):
        for axis, called in axes.items():
            if axis >= tensor.dim():
                continue
            length = str(nodes[str(name)].meta["val"].shape[axis])
            if length.isdecimal():
                raise HeteroFLError(
                    f"axis {axis} ({called}) of the input {name} cannot have any length: the model's code makes it "
                    f"{length}. Leave it out of dynamic (dynamic={{}} fixes all lengths to those of the inputs given), "
                    f"or take lengths from the input's shape in the model"
                )
            found.setdefault(length, called)
    return found


def _port(program: ExportedProgram, node: str, name: str, symbols: dict[str, str]) -> Port:
    value = _nodes(program)[node].meta["val"]
    shape = tuple(_length(str(length), symbols) for length in value.shape)
    return Port(name, str(value.dtype).removeprefix("torch."), shape)


def _length(expression: str, symbols: dict[str, str]) -> int | str:
    for symbol, name in symbols.items():
        expression = re.sub(rf"\b{symbol}\b", name, expression)
    return int(expression) if expression.isdecimal() else expression


def _nodes(program: ExportedProgram) -> dict[str, fx.Node]:
    return {node.name: node for node in program.graph.nodes}


def _forget_origins(program: ExportedProgram) -> None:
    """Remove where the code lay that the program was made from: these are paths of somebody's machine."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
