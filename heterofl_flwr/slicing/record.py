"""What came out of each operator of a trace, and the comparison of a smaller model with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from heterofl_flwr.errors import UnsupportedLayerError
from heterofl_flwr.slicing.channels import Grouping
from heterofl_flwr.slicing.dispatch import Hearing
from heterofl_flwr.slicing.operators import Call
from heterofl_flwr.slicing.trace import Rows, Trace

# Whether torch views or copies depends on strides, and so on widths of 1. What was moved wrongly shows in what follows.
_QUIET = {"view", "_unsafe_view", "clone", "expand", "alias", "detach", "as_strided", "as_strided_", "copy_", "empty"}


@dataclass(frozen=True, slots=True)
class Step:
    """One operator, and of each tensor that came out the shape and, where a rule gave them, its axes."""

    operator: str
    outputs: Sequence[tuple[Sequence[int], Rows | None]]


class Record:
    """The operators of a trace, in their order."""

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def add(self, call: Call, trace: Trace) -> None:
        """Write down a call."""
        name = _name(call.operator)
        if name not in _QUIET:
            outputs = [(tuple(output.shape), trace.known(output)) for output in call.outputs]
            self._steps.append(Step(name, outputs))

    def expected(self, grouping: Grouping, kept: Sequence[int]) -> Iterator[tuple[str, list[list[int | None]]]]:
        """Yield each operator and the shapes of what comes out at a width; None where any length is right."""
        for step in self._steps:
            yield step.operator, [_shape(grouping, kept, *output) for output in step.outputs]


class Compare(Hearing):
    """Compares the shapes of what comes out of each operator of a smaller model with what they must be."""

    def __init__(self, expected: Iterator[tuple[str, list[list[int | None]]]]) -> None:
        super().__init__()
        self._expected = expected

    def _called(self, func: OpOverload[..., Any], args: Sequence[Any], given: dict[str, Any], output: object) -> None:
        name = _name(func)
        if name not in _QUIET:
            operator, shapes = next(self._expected, ("nothing more", []))
            found = [list(leaf.shape) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if operator != name or not all(map(_fits, found, shapes)):
                raise UnsupportedLayerError(
                    f"in a smaller model {name} gives {found}, where {operator} must give {shapes}: the code depends "
                    f"on a width in a way that cannot be followed. Keep the layers whole that it is about (fixed=...), "
                    f"or take the width from a tensor's shape"
                )


def _shape(grouping: Grouping, kept: Sequence[int], shape: Sequence[int], rows: Rows | None) -> list[int | None]:
    if rows is None:
        return [None] * len(shape)
    pairs = zip(shape, rows, strict=True)
    return [length if row is None else grouping.count(row, kept) for length, row in pairs]


def _fits(found: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(found) == len(expected) and all(
        wanted in (length, None) for length, wanted in zip(found, expected, strict=True)
    )


def _name(called: OpOverload[..., Any]) -> str:
    return str(called.overloadpacket.__name__)
