"""The examples that a model is exported with, and whether a file computes on them what the model computes."""

import math
import statistics
import timeit
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from heterofl_flwr.errors import ConfigError, DataError, HeteroFLError, first_line
from heterofl_flwr.nn.execution import call, torch_threads

TOLERANCE = 1e-4
"""How far an output may be from the model's, as a share of the largest of the model's outputs.

Float32 has seven digits. With additions in another order a deep model keeps about five of them; another model, or one
with wrong statistics, none. The share is of the largest output because an error is as large as the terms that were
added up, however small their sum.
"""

WARM_UP = 10
"""Runs that do not count: the first ones allocate memory and choose kernels."""

Axes = Mapping[int, str]
"""Which axes of the inputs may have any length, and what they are called."""

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
"""What a model is called with: tensors by position, or by name."""

Run = Callable[[Inputs], list[Tensor]]


def read_inputs(given: object, axes: Axes) -> Inputs:
    """Return a tensor, a tuple of tensors or a mapping of named ones as inputs on the CPU."""
    found = dict(given) if isinstance(given, Mapping) else (given,) if isinstance(given, Tensor) else given
    leaves = list(found.values()) if isinstance(found, dict) else list(found) if isinstance(found, tuple) else []
    if not leaves or not all(isinstance(one, Tensor) and one.dim() and one.numel() for one in leaves):
        kinds = ", ".join(
            f"Tensor{tuple(one.shape)}" if isinstance(one, Tensor) else type(one).__name__ for one in leaves
        )
        raise DataError(
            f"the inputs are {kinds or type(given).__name__}; expected what the model is called with: a "
            f"tensor of some examples, a tuple of such tensors, or a mapping of named ones"
        )
    most = max(one.dim() for one in leaves)
    if wrong := [axis for axis in axes if not 0 <= axis < most]:
        raise ConfigError(f"dynamic has axis {wrong[0]}; expected 0 to {most - 1}, the axes of the inputs")
    own = [one.detach().cpu() for one in leaves]
    return dict(zip(map(str, found), own, strict=True)) if isinstance(found, dict) else tuple(own)


def first_example(inputs: Inputs) -> Inputs:
    """Return inputs with the first example alone."""
    alone: Inputs = tree_map(lambda one: one[:1], inputs)
    return alone


def build_cuts(inputs: Inputs, axes: Axes) -> list[Inputs]:
    """Return what a program is checked with: all examples, one, and halves of every axis of any length."""
    tensors: list[Tensor] = tree_leaves(inputs)
    cuts = [inputs]
    if 0 in axes and min(map(len, tensors)) > 1:
        cuts.append(first_example(inputs))
    for axis in axes:
        if min(one.shape[axis] for one in tensors if one.dim() > axis) > 1:
            cuts.append(tree_map(partial(_half, axis), inputs))
    return cuts


def _half(axis: int, one: Tensor) -> Tensor:
    return one.narrow(axis, 0, one.shape[axis] // 2) if one.dim() > axis else one


def compute_outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all tensors that a model puts out, in their order."""
    with torch.inference_mode():
        output = call(model, inputs)
    found = [leaf.clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if not found:
        raise DataError(f"the model returned {type(output).__name__}, in which no tensor was found")
    return found


def shapes(inputs: Inputs) -> str:
    """Return the tensors' shapes, for a message."""
    return f"inputs of shape {', '.join(str(tuple(one.shape)) for one in tree_leaves(inputs))}"


def compare(name: str, run: Run, cuts: Sequence[Inputs], expected: Sequence[Sequence[Tensor]]) -> dict[str, float]:
    """Return the greatest distance of a file's outputs from the model's: absolute, and relative to the largest output.

    Raises
    ------
    HeteroFLError
        If they are further than ``TOLERANCE``, or of another shape or type.
    """
    absolute = relative = 0.0
    for inputs, outputs in zip(cuts, expected, strict=True):
        where = f"on {shapes(inputs)}"
        try:
            found = run(inputs)
        except Exception as error:  # a guard of torch's, or the runtime's own
            raise HeteroFLError(
                f"the {name} file does not run {where}: {first_line(error)}. Nothing was written; if the model's code "
                f"asks for a certain length, leave that axis out of dynamic"
            ) from error
        kinds = [", ".join(f"{tuple(one.shape)} {one.dtype}" for one in own) for own in (found, outputs)]
        if kinds[0] != kinds[1]:
            raise HeteroFLError(
                f"the {name} file puts out {kinds[0]} {where}; the model puts out {kinds[1]}. Nothing was written"
            )
        for one, other in zip(found, outputs, strict=True):
            if not one.numel():
                continue
            distance, largest = (own.abs().max().item() for own in (one.double() - other.double(), other.double()))
            share = 0.0 if not distance else distance / largest if largest else math.inf
            absolute, relative = max(absolute, distance), max(relative, share)
            if not share <= TOLERANCE:  # NaN is not
                raise HeteroFLError(
                    f"the {name} file says something else than the model: {where} its outputs are up to {distance:.3g} "
                    f"off, {share:.3g} of the largest; expected {TOLERANCE:g} at most. Nothing was written; please "
                    f"report the model and the versions of torch and onnx"
                )
    return {"absolute": absolute, "relative": relative}


def median_milliseconds(inputs: Inputs, runs: int, run: Run) -> float | None:
    """Return the median time of so many runs, on one thread; None without any."""
    if not runs:
        return None
    with torch_threads(1):
        times = timeit.repeat(partial(run, inputs), number=1, repeat=WARM_UP + runs)
    return 1000 * statistics.median(times[WARM_UP:])
