"""Trace a model once, in training and in evaluation, and find its channels.

Other ways were weighed. ``torch.fx`` and ``torch.export`` give a graph, but in it the lengths that code computes with
have become constants, so that it is right at one width only. Rules by layer type do not see what happens between
layers. Here the model's own code runs on tensors without values, what it does to every axis is written down, and the
code of a smaller model is the very same.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from heterofl_flwr.elastic_models.channels import Channels, Grouping, Places
from heterofl_flwr.elastic_models.interception import Contiguous, Functions, Operators
from heterofl_flwr.elastic_models.record import Compare, Record, Step
from heterofl_flwr.elastic_models.skeleton import Number, Skeleton, refuse_scripts, tensors_of
from heterofl_flwr.elastic_models.trace import Trace
from heterofl_flwr.errors import ConfigError, UnsupportedLayerError
from heterofl_flwr.nn.execution import call

MODES = (True, False)
"""Training and evaluation: some models have parts that work in one of them only."""


@dataclass(frozen=True, eq=False)
class Traced:
    """What a trace found.

    Attributes
    ----------
    channels : Channels
        How the model is cut.
    numbers : Mapping[Number, Places]
        Whole numbers that layers hold and that shrink, each with the axis that it is the length of.
    steps : Sequence[Step]
        What the model did, in all modes.
    unused : Sequence[str]
        Layers, or single parameters, that could be cut but took no part; they are kept whole.
    """

    channels: Channels
    numbers: Mapping[Number, Places]
    steps: Sequence[Step]
    unused: Sequence[str]

    @property
    def normalises(self) -> bool:
        """Whether the model has norms: torch's, or written out with a reciprocal root, as RMS norms are."""
        return any("norm" in step.operator or "rsqrt" in step.operator for step in self.steps)


def trace_model(model: nn.Module, example_inputs: object, fixed: Sequence[str] = ()) -> Traced:
    """Trace a model; ``example_inputs`` and ``fixed`` are those of ``elastic``."""
    refuse_scripts(model)
    skeleton, trace = Skeleton(model), Trace()
    record = Record(skeleton.model)
    sources = skeleton.remember(trace)
    _pin_fixed(skeleton.model, trace, fixed)
    for mode in MODES:
        ears = Functions(trace), Operators(trace, lambda call: record.add(call, trace))
        for output in _traced_outputs(skeleton, example_inputs, mode, *ears):
            trace.pin(*trace.rows(output))
    unused = _pin_unused(skeleton.model, trace, record.used)
    parameters = [trace.rows(parameter) for parameter in skeleton.model.parameters()]
    grouping = Grouping(trace.positions, [row for rows in parameters for row in rows if row is not None])
    named = tensors_of(skeleton.model).items()
    axes = {name: tuple(map(grouping.places, trace.rows(tensor))) for name, tensor in named}
    used = {number: trace.open(source.row) for number, source in sources.items() if source.used}
    numbers = {number: places for number, row in used.items() if (places := grouping.places(row)) is not None}
    return Traced(Channels(tuple(grouping.sizes), axes), numbers, record.steps(grouping), unused)


def check_slice(
    steps: Sequence[Step] | None, kept: Sequence[int], small: nn.Module, example_inputs: object, rate: float
) -> None:
    """Run a smaller model, beside the steps of the trace if given; refuse it where it does anything else."""
    skeleton = Skeleton(small)
    compare = [] if steps is None else [Compare(steps, kept, skeleton.model)]
    try:
        for mode in MODES:
            _run(skeleton, example_inputs, mode, *compare)
        for one in compare:
            one.finish()
    except Exception as error:  # whatever the model's own code, and torch's, raise where widths do not fit
        said = str(error) if isinstance(error, UnsupportedLayerError) else _said(error)
        raise UnsupportedLayerError(
            f"at rate {rate:g} {skeleton.at_fault()} does something else than in the full model: {said}. Its code, or "
            f"that before it, depends on a width in a way that cannot be followed. Keep the layers whole that it is "
            f"about (fixed=...), or take the width from a tensor's shape"
        ) from None


def without_values(example_inputs: object) -> object:
    """Return inputs as tensors on torch's meta device."""
    return tree_map(lambda one: one.to("meta") if isinstance(one, Tensor) else one, example_inputs)


def _run(skeleton: Skeleton, example_inputs: object, mode: bool, *ears: AbstractContextManager[object]) -> object:
    """Run a skeleton and return what comes out."""
    skeleton.train(mode)
    given = without_values(example_inputs)
    with ExitStack() as stack, torch.no_grad(), torch.device("meta"), Contiguous():
        for ear in ears:
            stack.enter_context(ear)
        return call(skeleton.model, given)


def _traced_outputs(
    skeleton: Skeleton, example_inputs: object, mode: bool, *ears: AbstractContextManager[object]
) -> list[Tensor]:
    """Return all tensors that come out; say which layer is at fault if that fails."""
    try:
        output = _run(skeleton, example_inputs, mode, *ears)
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(f"{skeleton.at_fault()}: {error}") from error
    except Exception as error:  # whatever the model's own code raises
        raise UnsupportedLayerError(_untraceable(skeleton, error)) from error
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if not found:
        raise UnsupportedLayerError(
            f"the model returned {type(output).__name__}, in which no tensor was found: let it return tensors, or "
            f"tuples, lists or dicts of them"
        )
    return found


def _untraceable(skeleton: Skeleton, error: Exception) -> str:
    return (
        f"{skeleton.at_fault()} cannot be traced: {_said(error)}. A trace runs the model on the "
        f"example inputs without their values, so nothing may depend on values. Give inputs that the model takes, or "
        f"say by torch's own operators how the axes of the layer's output depend on its inputs and parameters: "
        f"@heterofl_flwr.elastic_models.stand_in({skeleton.kind()}), a function of the layer and its inputs"
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _pin_unused(model: nn.Module, trace: Trace, used: Collection[str]) -> list[str]:
    """Keep all parameters whole that went into no operator; return the outermost layers that hold nothing else.

    The code that uses them was not seen, so nobody knows which of their axes must fit to what.
    """
    parameters = dict(model.named_parameters())
    unused = {name for name in parameters if name not in used}
    idle = [name for name in sorted(unused) if any(row is not None for row in trace.rows(parameters[name]))]
    for name in idle:
        trace.pin(*trace.rows(parameters[name]))
    layers = [
        layer
        for layer in dict(model.named_modules())
        if layer and all(name in unused for name in parameters if name.startswith(f"{layer}."))
    ]
    found = (next((layer for layer in layers if name.startswith(f"{layer}.")), name) for name in idle)
    return list(dict.fromkeys(found))


def _pin_fixed(model: nn.Module, trace: Trace, fixed: Sequence[str]) -> None:
    """Keep all parameters whole that a pattern names, or whose layer it names."""
    tensors = tensors_of(model)
    names = [name for name in (*dict(model.named_modules()), *tensors) if name]
    for pattern in fixed:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(f"fixed: no layer or parameter matches {pattern!r}; there are {', '.join(names[:8])} ...")
        for name, tensor in tensors.items():
            if any(name == one or name.startswith(f"{one}.") for one in matching):
                trace.pin(*trace.rows(tensor))
