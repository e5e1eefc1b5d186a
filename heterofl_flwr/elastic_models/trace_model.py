"""Trace a model, to find the channels that must be kept or dropped together."""

# Why this is not a graph of ``torch.fx`` or ``torch.export``: its lengths would be constants, so it would be right at
# one width only. Why there are no rules by layer type: such rules would not see operations between layers.

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _Orthogonal
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._pytree import tree_leaves

from heterofl_flwr.common.errors import ConfigError, UnsupportedLayerError, first_line
from heterofl_flwr.elastic_models.channels import Channels, Grouping, Places, Row, Rows
from heterofl_flwr.elastic_models.check_slice import MODES, QUIET, Step
from heterofl_flwr.elastic_models.lengths import Trace
from heterofl_flwr.elastic_models.rules import HOLDS_THE_MODEL, Call, Functions, Operators, follow
from heterofl_flwr.elastic_models.skeleton import Number, Skeleton, entries, find_containers
from heterofl_flwr.nn.execution import named_tensors, tensors_in

_NORM = re.compile("(?<!weight_)norm(?!al)|rsqrt")


@dataclass(frozen=True, eq=False)
class Traced:
    """Result of a trace."""

    channels: Channels
    numbers: Mapping[Number, Places]  # integer attributes that shrink, each with the places of its axis
    steps: Sequence[Step]  # operator calls in all modes
    unused: Sequence[str]  # layers or parameters that no operator used; they are kept in full
    reasons: Sequence[str]  # reasons why axes are kept in full, sorted by number of channels, descending
    normalises: bool  # whether the model has norms; a reciprocal root counts as one, as in an RMS norm
    says_tracing: bool  # see Skeleton


def trace_model(
    model: nn.Module,
    example_inputs: object,
    fixed: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> Traced:
    """Trace a model. See ``elastic`` for the arguments.

    If the trace fails, trace again while ``torch.jit.is_tracing()`` returns True.
    """
    _check_model(model)
    _check_inputs(example_inputs)
    containers = [(name, container, copy.copy(container)) for name, container in find_containers(model).items()]
    try:
        return Tracer(Skeleton(model, False), fixed).trace(example_inputs, outputs)
    except UnsupportedLayerError as refused:
        try:
            return Tracer(Skeleton(model, True), fixed).trace(example_inputs, outputs)
        except UnsupportedLayerError:
            raise refused from refused.__cause__
    finally:
        _restore(containers)


def _check_model(model: nn.Module) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, torch.jit.ScriptModule | torch.fx.GraphModule):
            raise UnsupportedLayerError(
                f"layer {name or '(the model itself)'} is compiled by torch.jit or torch.fx, so its code cannot be "
                f"followed: give the model from before it was compiled"
            )


def _check_inputs(example_inputs: object) -> None:
    objects = (leaf for leaf in tree_leaves(example_inputs) if not isinstance(leaf, Tensor))
    kinds = {type(leaf).__name__ for leaf in objects if any(True for _ in tensors_in(leaf))}
    if kinds:
        raise UnsupportedLayerError(
            f"example_inputs has a {', '.join(sorted(kinds))} with tensors in its attributes, which a trace cannot "
            f"replace by tensors without values: give a model around this one that takes tensors, as forward(x, edges)"
        )


_CAUSES = {
    "not on the expected device": "the code uses a tensor that is neither a parameter nor a buffer of a layer, such as "
    "one of a closure or a global: register it (register_buffer)",
    "(?i)sparse|strided tensors": "an input or the code has sparse tensors, and a trace follows dense ones: use "
    "torch.Tensor.to_dense",
    r"aten::\w+|nonzero|item\(\)": "{match} needs the values of tensors, and a trace runs the model without them: "
    "{remedy}",
    "": "{error}. A trace runs the model on the example inputs without their values, so nothing may depend on values, "
    "as packed sequences do. Give inputs that the model takes, or {remedy}",
}
"""Explanations of torch's errors when a model runs without values, by a pattern of the error's text."""


def _explain(error: Exception, layer: nn.Module) -> str:
    text = first_line(error).rstrip(".")
    match, cause = next((match, cause) for pattern, cause in _CAUSES.items() if (match := re.search(pattern, text)))
    remedy = (
        f"say by torch's own operators how the axes of the layer's output depend on its inputs and parameters: "
        f"@heterofl_flwr.elastic_models.stand_in({type(layer).__name__}), a function of the layer and its inputs"
    )
    return cause.format(match=match[0], error=text, remedy=remedy)


def _restore(containers: Sequence[tuple[str, Any, Any]]) -> None:
    """Undo changes to the model's dicts and lists. If there were any, raise ``UnsupportedLayerError``.

    ``containers`` has (name, object, earlier copy).
    """
    changed = []
    for name, container, before in containers:
        old = entries(before)
        entries_changed = [
            f"{name}{key}".lstrip(".") for key, value in entries(container).items() if value is not old.get(key)
        ]
        if entries_changed or len(container) != len(before):
            changed += entries_changed or [name]
            container.clear()
            (container.update if isinstance(container, dict) else container.extend)(before)
    if changed:
        raise UnsupportedLayerError(HOLDS_THE_MODEL.format(f"sets {', '.join(changed)}"))


class Tracer:
    """One trace of a model: the used parameters and the operator calls."""

    def __init__(self, skeleton: Skeleton, fixed: Sequence[str]) -> None:
        self._skeleton = skeleton
        self._trace = Trace(lambda: self._skeleton.place)
        self._sources = self._skeleton.remember(self._trace)
        self._named = named_tensors(self._skeleton.model)
        for name in _names_fixed(self._skeleton.model, fixed):
            self._trace.pin(*self._trace.rows(self._named[name]))
        for name, layer in self._skeleton.model.named_modules():
            if isinstance(layer, ParametrizationList) and any(isinstance(part, _Orthogonal) for part in layer):
                why = f"a part of the orthogonal matrix {name} would not be orthogonal"
                self._trace.pin(
                    *(row for part in named_tensors(layer).values() for row in self._trace.rows(part)), why=why
                )
        self._used: set[str] = set()  # parameters and buffers that at least one operator used
        self._calls: list[tuple[Step, list[tuple[torch.Size, Rows | None]]]] = []
        self._flow: list[Call] = []
        self._returned: list[Tensor] = []  # all outputs of the model
        self._normalises = False

    def trace(self, example_inputs: object, outputs: Sequence[str]) -> Traced:
        """Run the model in training and in evaluation mode, and return the result of the trace."""
        # Outputs after the first may be hidden states that no code reads.
        why = "a tensor is one of the model's outputs (name the outputs that matter: outputs=[...])"
        for mode in MODES:
            for number, output in enumerate(self._outputs(example_inputs, mode, outputs)):
                self._trace.pin(*self._trace.rows(output), why=why if number and not outputs else "")
        return self._find()

    def _outputs(self, example_inputs: object, mode: bool, names: Sequence[str]) -> list[Tensor]:
        skeleton = self._skeleton
        try:
            output = skeleton.run(example_inputs, mode, Functions(self._trace), Operators(self._record))
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(f"{skeleton.place}: {error}") from error
        except Exception as error:  # the model's own code may raise anything
            raise UnsupportedLayerError(
                f"{skeleton.place} cannot be traced: {_explain(error, skeleton.at_work[1])}"
            ) from error
        self._returned += tensors_in(output)
        if names:
            named = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
            if missing := [name for name in names if named.get(name) is None]:
                raise ConfigError(
                    f"outputs: the model returned a {type(output).__name__} without {', '.join(missing)}; it has "
                    f"{', '.join(map(str, named)) or 'no names'}"
                )
            output = [named[name] for name in names]
        tensors = list(tensors_in(output))
        if not tensors:
            raise UnsupportedLayerError(
                f"the model returned {type(output).__name__}, in which no tensor was found: let it return tensors, or "
                f"tuples, lists, dicts or dataclasses of them"
            )
        return tensors

    def _record(self, called: Call) -> None:
        follow(self._trace, called)
        self._flow.append(called)
        tensors = self._skeleton.names_in(called)
        self._used.update(tensors)
        if called.name not in QUIET:
            outputs = [(output.shape, self._trace.marked_rows(output)) for output in called.outputs]
            self._calls.append((Step(called.name, tensors, [], called.numbers, called.terms), outputs))
        if _NORM.search(called.name):
            # Norms of weights do not normalise activations.
            self._normalises |= "parametrizations" not in self._skeleton.at_work[0].split(".")

    def _find(self) -> Traced:
        trace = self._trace
        trace.listening = False
        unused = _pin_unused(self._skeleton.model, trace, self._used)
        _pin_unreturned(self._skeleton.model, trace, self._flow, self._returned)
        parameters = [trace.rows(parameter) for parameter in self._skeleton.model.parameters()]
        rows = [row for rows_of in parameters for row in rows_of if row is not None]
        _pin_tables(trace, rows)
        used = {number: source.row for number, source in self._sources.items() if "row" in vars(source)}
        grouping = Grouping(trace.positions, rows, list(used.values()))
        axes = {name: tuple(map(grouping.places, trace.rows(tensor))) for name, tensor in self._named.items()}
        numbers = {number: grouping.places(row) for number, row in used.items()}

        def lengths(shape: torch.Size, rows: Rows | None) -> list[int | Places | None]:
            if rows is None:
                return [None] * len(shape)
            return [length if row is None else grouping.length(row) for length, row in zip(shape, rows, strict=True)]

        return Traced(
            Channels(tuple(grouping.sizes), axes),
            {number: places for number, places in numbers.items() if places is not None},
            [step._replace(outputs=[lengths(*output) for output in outputs]) for step, outputs in self._calls],
            unused,
            [reason for reason, _ in trace.reasons.most_common()],
            self._normalises,
            self._skeleton.says_tracing,
        )


def _pin_unused(model: nn.Module, trace: Trace, used: set[str]) -> list[str]:
    # The code that uses these parameters was not run, so it is unknown which of their axes belong together.
    parameters = dict(model.named_parameters())
    busy = [f"{name}." for name in parameters if name in used]
    rows = {name: trace.rows(parameters[name]) for name in sorted(parameters.keys() - used)}
    idle = [name for name, path_parts in rows.items() if any(row is not None for row in path_parts)]
    for name in idle:
        trace.pin(*rows[name])
    outermost = (
        next(
            path
            for path in accumulate(name.split("."), "{}.{}".format)
            if not any(prefix.startswith(f"{path}.") for prefix in busy)
        )
        for name in idle
    )
    return list(dict.fromkeys(outermost))


def _pin_unreturned(model: nn.Module, trace: Trace, calls: Sequence[Call], returned: Sequence[Tensor]) -> None:
    """Keep results in full that no operator reads and the model does not return, such as ``self.logits = head(x)``.

    Other code may read them. Their channels are cut only with those of a parameter on which an output depends, as the
    last state of an LSTM is.
    """
    needed = set(map(id, returned))
    read = needed.union(id(tensor) for called in calls for tensor in called.inputs)
    for called in reversed(calls):
        # An operator in place may write into a view of a tensor that is needed.
        if called.name.endswith("_") or not needed.isdisjoint(map(id, called.outputs)):
            needed.update(map(id, called.inputs))
    busy = [row for tensor in model.parameters() if id(tensor) in needed for row in trace.rows(tensor)]
    roots = np.concatenate([[0], *(trace.positions.roots(row) for row in busy if row is not None)])
    why = "the code computes a tensor that no output of the model depends on"
    for result in (tensor for called in calls for tensor in called.outputs if id(tensor) not in read):
        for row in trace.rows(result):
            if row is not None:
                trace.pin(row[~np.isin(trace.positions.roots(row), roots)], why=why)


def _pin_tables(trace: Trace, axes: Sequence[Row]) -> None:
    """Keep all rows of a table, such as position embeddings, if the model slices it at a constant: ``table[:8]``."""
    # A longer input may read more of a table. Packed weights are no table: their positions occur on other axes too.
    roots = trace.positions.roots
    numbers = np.zeros(trace.positions.number, np.int64)  # by root, the number of axes with this position
    for row in axes:
        numbers[np.unique(roots(row))] += 1
    for row in trace.sliced:
        if not roots(row).all():
            trace.pin(row[numbers[roots(row)] == 1])


def _names_fixed(model: nn.Module, fixed: Sequence[str]) -> Iterator[str]:
    tensors = named_tensors(model)
    layers = [name for name, layer in model.named_modules() if name and named_tensors(layer)]
    names = [*layers, *tensors]
    for pattern in fixed:
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(
                f"fixed: no parameter, and no layer with parameters, matches {pattern!r}; there are "
                f"{', '.join(names[:8])} ..."
            )
        yield from (
            name for name in tensors if any(name == match or name.startswith(f"{match}.") for match in matching)
        )
