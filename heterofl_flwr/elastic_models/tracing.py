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
from heterofl_flwr.elastic_models.record import Comparison, Record, Step
from heterofl_flwr.elastic_models.skeleton import Number, Skeleton, named_tensors
from heterofl_flwr.elastic_models.trace import Trace
from heterofl_flwr.errors import ConfigError, UnsupportedLayerError, first_line
from heterofl_flwr.nn.execution import call

MODES = (True, False)
"""Training and evaluation: some models have parts that work in one of them only."""


@dataclass(frozen=True, eq=False)
class Traced:
    """What a trace found."""

    channels: Channels
    numbers: Mapping[Number, Places]  # whole numbers that layers hold and that shrink, each with the axis it belongs to
    steps: Sequence[Step]  # what the model did, in all modes
    unused: Sequence[str]  # layers, or single parameters, that could be cut but took no part; they are kept whole

    @property
    def normalises(self) -> bool:
        """Whether the model has norms: torch's, or written out with a reciprocal root, as RMS norms are."""
        return any("norm" in step.operator or "rsqrt" in step.operator for step in self.steps)


def trace_model(model: nn.Module, example_inputs: object, fixed: Sequence[str] = ()) -> Traced:
    """Trace a model; ``example_inputs`` and ``fixed`` are those of ``elastic``."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            raise UnsupportedLayerError(
                f"layer {name or '(the model itself)'} is compiled by torch.jit, so its code cannot be followed: "
                f"give the model from before it was compiled"
            )
    skeleton, trace = Skeleton(model), Trace()
    record = Record(skeleton.model, trace)
    sources = skeleton.remember(trace)
    _pin_fixed(skeleton.model, trace, fixed)
    for mode in MODES:
        for output in _traced_outputs(skeleton, example_inputs, mode, Functions(trace), Operators(record.add)):
            trace.pin(*trace.rows(output))
    trace.listening = False
    unused = _pin_unused(skeleton.model, trace, record.used)
    parameters = [trace.rows(parameter) for parameter in skeleton.model.parameters()]
    grouping = Grouping(trace.positions, [row for rows in parameters for row in rows if row is not None])
    named = named_tensors(skeleton.model).items()
    axes = {name: tuple(map(grouping.places, trace.rows(tensor))) for name, tensor in named}
    found = {number: grouping.places(trace.open(source.row)) for number, source in sources.items() if source.used}
    numbers = {number: places for number, places in found.items() if places is not None}
    return Traced(Channels(tuple(grouping.sizes), axes), numbers, record.steps(grouping), unused)


def check_slice(
    steps: Sequence[Step] | None, kept: Sequence[int], small: nn.Module, example_inputs: object, rate: float
) -> None:
    """Run a smaller model, beside the steps of the trace if given; raise an error where it does anything else."""
    skeleton = Skeleton(small)
    comparison = None if steps is None else Comparison(steps, kept, skeleton.model)
    try:
        for mode in MODES:
            _run(skeleton, example_inputs, mode, *([Operators(comparison.add)] if comparison else []))
        if comparison:
            comparison.finish()
    except Exception as error:  # whatever the model's own code, and torch's, raise where widths do not fit
        said = str(error) if isinstance(error, UnsupportedLayerError) else first_line(error)
        raise UnsupportedLayerError(
            f"at rate {rate:g} {skeleton.layer_at_work} does something else than in the full model: {said}. Its code, "
            f"or that before it, depends on a width in a way that cannot be followed. Keep the layers whole that it is "
            f"about (fixed=...), or take the width from a tensor's shape"
        ) from None


def without_values(example_inputs: object) -> object:
    """Return inputs as tensors on torch's meta device."""
    return tree_map(lambda one: one.to("meta") if isinstance(one, Tensor) else one, example_inputs)


def _run(skeleton: Skeleton, example_inputs: object, mode: bool, *modes: AbstractContextManager[object]) -> object:
    """Run a skeleton and return what comes out."""
    skeleton.train(mode)
    given = without_values(example_inputs)
    with ExitStack() as stack, torch.no_grad(), torch.device("meta"), Contiguous():
        for one in modes:
            stack.enter_context(one)
        return call(skeleton.model, given)


def _traced_outputs(
    skeleton: Skeleton, example_inputs: object, mode: bool, *modes: AbstractContextManager[object]
) -> list[Tensor]:
    """Return all tensors that come out; if that fails, name the layer in the error."""
    try:
        output = _run(skeleton, example_inputs, mode, *modes)
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(f"{skeleton.layer_at_work}: {error}") from error
    except Exception as error:  # whatever the model's own code raises
        raise UnsupportedLayerError(
            f"{skeleton.layer_at_work} cannot be traced: {first_line(error)}. A trace runs the model on the "
            f"example inputs without their values, so nothing may depend on values. Give inputs that the model takes, "
            f"or say by torch's own operators how the axes of the layer's output depend on its inputs and parameters: "
            f"@heterofl_flwr.elastic_models.stand_in({skeleton.type_at_work}), a function of the layer and its inputs"
        ) from error
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if not found:
        raise UnsupportedLayerError(
            f"the model returned {type(output).__name__}, in which no tensor was found: let it return tensors, or "
            f"tuples, lists or dicts of them"
        )
    return found


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
    tensors = named_tensors(model)
    names = [name for name in (*dict(model.named_modules()), *tensors) if name]
    for pattern in fixed:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(f"fixed: no layer or parameter matches {pattern!r}; there are {', '.join(names[:8])} ...")
        for name, tensor in tensors.items():
            if any(name == one or name.startswith(f"{one}.") for one in matching):
                trace.pin(*trace.rows(tensor))
