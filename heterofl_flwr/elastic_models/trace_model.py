"""Trace a model once, in training and in evaluation, and find its channels; check a smaller model against the trace.

Other ways were weighed. ``torch.fx`` and ``torch.export`` give a graph, but in it the lengths that code computes with
have become constants, so that it is right at one width only. Rules by layer type do not see what happens between
layers. Here the model's own code runs on tensors without values, what it does to every axis is written down, and the
code of a smaller model is the very same.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map

from heterofl_flwr.elastic_models.channels import Channels, Grouping, Places, Rows, kept_positions
from heterofl_flwr.elastic_models.lengths import Length, Source, Trace
from heterofl_flwr.elastic_models.rules import STAND_INS, Call, Contiguous, Functions, Operators, follow
from heterofl_flwr.errors import ConfigError, UnsupportedLayerError, first_line
from heterofl_flwr.nn.execution import call

_MODES = (True, False)  # training and evaluation: some models have parts that work in one of them only
_LARGEST_WIDTH = 1 << 20
# Whether torch views or copies depends on strides, and so on widths of 1. What was moved wrongly shows in what follows.
_QUIET = {"view", "_unsafe_view", "clone", "expand", "alias", "detach", "as_strided", "as_strided_", "copy_", "empty"}


class Number(NamedTuple):
    """A whole number that a layer holds, alone or at a place in a sequence."""

    layer: str
    name: str
    place: int | None


class Step(NamedTuple):
    """A call of an operator that is the same at every rate.

    A length of an output is always the same, as many as are kept of some positions, or any.
    """

    operator: str
    tensors: list[str]  # the model's own that go in
    outputs: list[list[int | Places | None]]  # the shape of each tensor that comes out


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


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers under every name that they have."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(named)


def copy_with(model: nn.Module, new: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Return a copy of a model with other tensors; those that are one in the model are one in the copy."""
    memo: dict[int, object] = {}
    for name, tensor in named_tensors(model).items():
        if id(tensor) not in memo:
            other = new(name, tensor.detach())
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(other, tensor.requires_grad) if is_parameter else other
    try:
        return copy.deepcopy(model, memo)
    except RuntimeError as error:  # torch copies no tensor that was computed, as the older weight_norm leaves one
        raise UnsupportedLayerError(
            f"the model cannot be copied: {first_line(error)}. Give it as it was built, without tensors that it has "
            f"computed; for weight_norm, that of torch.nn.utils.parametrizations"
        ) from error


class Skeleton:
    """A copy of a model on torch's meta device, which knows the layer that is at work."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy_with(model, lambda name, tensor: torch.empty_like(tensor, device="meta"))
        self._names = {id(tensor): name for name, tensor in reversed(named_tensors(self.model).items())}
        self._path: list[str] = []
        self._layers = dict(self.model.named_modules())
        for name, layer in self._layers.items():
            replacement = STAND_INS.find(layer)
            if replacement is not None:
                layer.__dict__["forward"] = partial(replacement, layer)
            layer.register_forward_pre_hook(lambda *given, name=name: self._path.append(name))
            layer.register_forward_hook(self._leave)

    def _leave(self, *given: object) -> None:
        self._path.pop()

    @property
    def layer_at_work(self) -> tuple[str, str]:
        """The layer at work, for a message, and its type."""
        name = (self._path or [""])[-1]
        kind = type(self._layers[name]).__name__
        return f"layer {name or '(the model itself)'} of type {kind}", kind

    def names_in(self, called: Call) -> list[str]:
        """Return the names of those of the model's own tensors that go into a call."""
        return [self._names[id(one)] for one in called.inputs if id(one) in self._names]

    def remember(self, trace: Trace) -> dict[Number, Source]:
        """Give every tensor positions of its own, and every number of every layer a source; return the sources."""
        trace.fresh(*named_tensors(self.model).values())
        sources: dict[Number, Source] = {}

        def length(value: Any, *place: Any) -> Any:
            if type(value) is not int or not 1 < value < _LARGEST_WIDTH:
                return value
            sources[Number(*place)] = source = Source(trace, partial(trace.positions.new, value))
            return Length.of(value, (source,))

        for layer, module in self._layers.items():
            for name, value in list(vars(module).items()):
                if type(value) in (tuple, list, torch.Size):
                    held = type(value)(length(one, layer, name, place) for place, one in enumerate(value))
                else:
                    held = length(value, layer, name, None)
                module.__dict__[name] = held
        return sources

    def run(self, example_inputs: object, mode: bool, *watching: AbstractContextManager[object]) -> object:
        """Return what comes out; batch norm stays in evaluation: in training it raises an error for small batches."""
        self._path.clear()
        for layer in self._layers.values():
            layer.training = mode and not isinstance(layer, _NormBase)
        given = without_values(example_inputs)
        # Code asks this before it looks at values, such as whether a mask masks anything.
        tracing = mock.patch.object(torch.jit, "is_tracing", return_value=True)
        with ExitStack() as stack, torch.no_grad(), torch.device("meta"), Contiguous(), tracing:
            for one in watching:
                stack.enter_context(one)
            return call(self.model, given)


def without_values(example_inputs: object) -> object:
    """Return inputs as tensors on torch's meta device."""
    return tree_map(lambda one: one.to("meta") if isinstance(one, Tensor) else one, example_inputs)


def trace_model(model: nn.Module, example_inputs: object, fixed: Sequence[str] = ()) -> Traced:
    """Trace a model; ``example_inputs`` and ``fixed`` are those of ``elastic``."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            raise UnsupportedLayerError(
                f"layer {name or '(the model itself)'} is compiled by torch.jit, so its code cannot be followed: "
                f"give the model from before it was compiled"
            )
    skeleton, trace = Skeleton(model), Trace()
    sources = skeleton.remember(trace)
    named = named_tensors(skeleton.model)
    for name in _names_fixed(skeleton.model, fixed):
        trace.pin(*trace.rows(named[name]))
    used: set[str] = set()  # the model's parameters and buffers that went into any operator
    calls: list[tuple[str, list[str], list[tuple[torch.Size, Rows | None]]]] = []

    def record(called: Call) -> None:
        follow(trace, called)
        tensors = skeleton.names_in(called)
        used.update(tensors)
        if called.name not in _QUIET:
            calls.append((called.name, tensors, [(one.shape, trace.known(one)) for one in called.outputs]))

    for mode in _MODES:
        for output in _outputs(skeleton, example_inputs, mode, Functions(trace), Operators(record)):
            trace.pin(*trace.rows(output))
    trace.listening = False
    unused = _pin_unused(skeleton.model, trace, used)
    parameters = [trace.rows(parameter) for parameter in skeleton.model.parameters()]
    grouping = Grouping(trace.positions, [row for rows in parameters for row in rows if row is not None])
    axes = {name: tuple(map(grouping.places, trace.rows(tensor))) for name, tensor in named.items()}
    numbers = {one: grouping.places(trace.open(source.row)) for one, source in sources.items() if "row" in vars(source)}

    def lengths(shape: torch.Size, rows: Rows | None) -> list[int | Places | None]:
        if rows is None:
            return [None] * len(shape)
        return [one if row is None else grouping.length(row) for one, row in zip(shape, rows, strict=True)]

    return Traced(
        Channels(tuple(grouping.sizes), axes),
        {number: places for number, places in numbers.items() if places is not None},
        [Step(name, tensors, [lengths(*output) for output in outputs]) for name, tensors, outputs in calls],
        unused,
    )


def _outputs(
    skeleton: Skeleton, example_inputs: object, mode: bool, *watching: AbstractContextManager[object]
) -> list[Tensor]:
    """Return all tensors that come out; if that fails, name the layer in the error."""
    try:
        output = skeleton.run(example_inputs, mode, *watching)
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(f"{skeleton.layer_at_work[0]}: {error}") from error
    except Exception as error:  # whatever the model's own code raises
        layer, kind = skeleton.layer_at_work
        raise UnsupportedLayerError(
            f"{layer} cannot be traced: {first_line(error)}. A trace runs the model on the "
            f"example inputs without their values, so nothing may depend on values. Give inputs that the model takes, "
            f"or say by torch's own operators how the axes of the layer's output depend on its inputs and parameters: "
            f"@heterofl_flwr.elastic_models.stand_in({kind}), a function of the layer and its inputs"
        ) from error
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if not found:
        raise UnsupportedLayerError(
            f"the model returned {type(output).__name__}, in which no tensor was found: let it return tensors, or "
            f"tuples, lists or dicts of them"
        )
    return found


def _pin_unused(model: nn.Module, trace: Trace, used: set[str]) -> list[str]:
    """Keep all parameters whole that went into no operator; return the outermost layers that hold nothing else.

    The code that uses them was not seen, so nobody knows which of their axes must fit to what.
    """
    parameters = dict(model.named_parameters())
    busy = [f"{name}." for name in parameters if name in used]
    rows = {name: trace.rows(parameters[name]) for name in sorted(parameters.keys() - used)}
    idle = [name for name, own in rows.items() if any(row is not None for row in own)]
    for name in idle:
        trace.pin(*rows[name])
    paths = [accumulate(name.split("."), "{}.{}".format) for name in idle]
    found = [next(path for path in own if not any(one.startswith(f"{path}.") for one in busy)) for own in paths]
    return list(dict.fromkeys(found))


def _names_fixed(model: nn.Module, fixed: Sequence[str]) -> Iterator[str]:
    """Yield the names of all parameters and buffers that a pattern names, or whose layer it names."""
    tensors = named_tensors(model)
    names = [name for name in (*dict(model.named_modules()), *tensors) if name]
    for pattern in fixed:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(f"fixed: no layer or parameter matches {pattern!r}; there are {', '.join(names[:8])} ...")
        yield from (name for name in tensors if any(name == one or name.startswith(f"{one}.") for one in matching))


def check_slice(
    steps: Sequence[Step] | None, kept: Sequence[int], small: nn.Module, example_inputs: object, rate: float
) -> None:
    """Run a smaller model, beside the steps of the trace if given; raise an error where it does anything else."""
    skeleton = Skeleton(small)
    expected = _expected(steps or (), kept)

    def compare(called: Call) -> None:
        if steps is not None and called.name not in _QUIET:
            shapes: Any = [list(output.shape) for output in called.outputs]
            _compare(Step(called.name, skeleton.names_in(called), shapes), next(expected, _END))

    try:
        for mode in _MODES:
            skeleton.run(example_inputs, mode, Operators(compare))
        _compare(_END, next(expected, _END))
    except Exception as error:  # whatever the model's own code, and torch's, raise where widths do not fit
        said = str(error) if isinstance(error, UnsupportedLayerError) else first_line(error)
        raise UnsupportedLayerError(
            f"at rate {rate:g} {skeleton.layer_at_work[0]} does something else than in the full model: {said}. Its "
            f"code, or that before it, depends on a width in a way that cannot be followed. Keep the layers whole that "
            f"it is about (fixed=...), or take the width from a tensor's shape"
        ) from None


_END = Step("nothing more", [], [])


def _expected(steps: Sequence[Step], kept: Sequence[int]) -> Iterator[Step]:
    """Yield steps with the lengths that a model has which keeps so many channels of each group."""
    arrays = {id(x): x for step in steps for shape in step.outputs for x in shape if isinstance(x, np.ndarray)}
    counts = {key: len(kept_positions(array, kept)) for key, array in arrays.items()}  # few, in many steps
    for step in steps:
        yield step._replace(outputs=[[counts.get(id(x), x) for x in shape] for shape in step.outputs])


def _compare(found: Step, expected: Step) -> None:
    """Raise an error if a call is not the step expected."""
    fit = all(
        len(one) == len(other) and all(length in (few, None) for few, length in zip(one, other, strict=True))
        for one, other in zip(found.outputs, expected.outputs, strict=False)
    )
    if found[:2] != expected[:2] or not fit:
        said, wanted = (
            f"{operator} of {', '.join(own)}" if own else operator for operator, own, _ in (found, expected)
        )
        raise UnsupportedLayerError(f"{said} gives {found.outputs}, where {wanted} must give {expected.outputs}")
