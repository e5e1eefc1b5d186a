"""What came out of each operator of a trace, and the comparison of a smaller model with it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from heterofl_flwr.elastic_models.channels import Grouping, Places, kept_positions
from heterofl_flwr.elastic_models.interception import follow
from heterofl_flwr.elastic_models.rules import Call
from heterofl_flwr.elastic_models.skeleton import named_tensors
from heterofl_flwr.elastic_models.trace import Rows, Trace
from heterofl_flwr.errors import UnsupportedLayerError

# Whether torch views or copies depends on strides, and so on widths of 1. What was moved wrongly shows in what follows.
_QUIET = {"view", "_unsafe_view", "clone", "expand", "alias", "detach", "as_strided", "as_strided_", "copy_", "empty"}

Length = int | Places | None
"""The length of an axis at every rate: always the same, as many as are kept of these positions, or any."""


@dataclass(frozen=True, slots=True)
class Step:
    """A call of an operator: its name, the model's own tensors that go in, the shape of each tensor that comes out."""

    operator: str
    tensors: Sequence[str]
    outputs: Sequence[Sequence[Length]]


class Record:
    """The operators of a trace, in their order."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self.used: set[str] = set()  # the model's parameters and buffers that went into any operator
        self._trace = trace
        self._names = _names_by_id(model)
        self._calls: list[tuple[str, list[str], list[tuple[Sequence[int], Rows | None]]]] = []

    def add(self, call: Call) -> None:
        """Let the trace follow a call, and write it down."""
        follow(self._trace, call)
        tensors = [self._names[id(one)] for one in call.inputs if id(one) in self._names]
        self.used.update(tensors)
        if call.name not in _QUIET:
            self._calls.append((call.name, tensors, [(one.shape, self._trace.known(one)) for one in call.outputs]))

    def steps(self, grouping: Grouping) -> list[Step]:
        """Return what must hold at every rate."""

        def lengths(shape: Sequence[int], rows: Rows | None) -> Sequence[Length]:
            if rows is None:
                return [None] * len(shape)
            pairs = zip(shape, rows, strict=True)
            return [length if row is None else grouping.length(row) for length, row in pairs]

        return [Step(name, tensors, [lengths(*output) for output in outputs]) for name, tensors, outputs in self._calls]


class Comparison:
    """Compares what a smaller model does, which keeps so many channels of each group, with the steps of a trace."""

    def __init__(self, steps: Sequence[Step], kept: Sequence[int], model: nn.Module) -> None:
        arrays = {id(x): x for step in steps for shape in step.outputs for x in shape if isinstance(x, np.ndarray)}
        counts = {key: len(kept_positions(array, kept)) for key, array in arrays.items()}  # few, in many steps
        self._expected = iter(
            (step.operator, step.tensors, [[counts.get(id(x), x) for x in shape] for shape in step.outputs])
            for step in steps
        )
        self._names = _names_by_id(model)

    def add(self, call: Call) -> None:
        """Raise an error if a call is not the next step."""
        if call.name in _QUIET:
            return
        expected = next(self._expected, ("nothing more", (), []))
        tensors = [self._names[id(one)] for one in call.inputs if id(one) in self._names]
        shapes = [list(output.shape) for output in call.outputs]
        fit = all(
            len(found) == len(wanted) and all(two in (one, None) for one, two in zip(found, wanted, strict=True))
            for found, wanted in zip(shapes, expected[2], strict=False)
        )
        if (call.name, tensors) != expected[:2] or not fit:
            _raise(_describe(call.name, tensors), shapes, expected)

    def finish(self) -> None:
        """Raise an error if the model has left out the last steps."""
        missing = next(self._expected, None)
        if missing is not None:
            _raise("nothing more", [], missing)


def _raise(found: str, shapes: object, expected: tuple[str, Sequence[str], object]) -> None:
    operator, tensors, wanted = expected
    raise UnsupportedLayerError(f"{found} gives {shapes}, where {_describe(operator, tensors)} must give {wanted}")


def _describe(operator: str, tensors: Sequence[str]) -> str:
    return f"{operator} of {', '.join(tensors)}" if tensors else operator


def _names_by_id(model: nn.Module) -> dict[int, str]:
    return {id(tensor): name for name, tensor in reversed(named_tensors(model).items())}
