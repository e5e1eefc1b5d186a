"""What came out of each operator of a trace, and the comparison of a smaller model with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from heterofl_flwr.elastic_models.channels import Grouping, Places, kept_positions
from heterofl_flwr.elastic_models.interception import Hearing
from heterofl_flwr.elastic_models.operators import Call
from heterofl_flwr.elastic_models.skeleton import tensors_of
from heterofl_flwr.elastic_models.trace import Rows, Trace
from heterofl_flwr.errors import UnsupportedLayerError

# Whether torch views or copies depends on strides, and so on widths of 1. What was moved wrongly shows in what follows.
_QUIET = {"view", "_unsafe_view", "clone", "expand", "alias", "detach", "as_strided", "as_strided_", "copy_", "empty"}

Length = int | Places | None
"""The length of an axis at every rate: always the same, as many as are kept of these positions, or any."""


@dataclass(frozen=True, slots=True)
class Step:
    """One call of an operator.

    Attributes
    ----------
    operator : str
        Its name.
    tensors : Sequence[str]
        The model's own parameters and buffers that went in.
    outputs : Sequence[Sequence[Length]]
        The shape of each tensor that came out.
    """

    operator: str
    tensors: Sequence[str]
    outputs: Sequence[Sequence[Length]]


class Record:
    """The operators of a trace, in their order.

    Parameters
    ----------
    model : nn.Module
        The model that is traced.

    Attributes
    ----------
    used : set[str]
        The model's parameters and buffers that went into any operator.
    """

    def __init__(self, model: nn.Module) -> None:
        self.used: set[str] = set()
        self._names = _names(model)
        self._calls: list[tuple[str, list[str], list[tuple[Sequence[int], Rows | None]]]] = []

    def add(self, call: Call, trace: Trace) -> None:
        """Write down a call."""
        tensors = _own(call.inputs, self._names)
        self.used.update(tensors)
        name = _name(call.operator)
        if name not in _QUIET:
            self._calls.append((name, tensors, [(output.shape, trace.known(output)) for output in call.outputs]))

    def steps(self, grouping: Grouping) -> list[Step]:
        """Return what must hold at every rate."""
        return [
            Step(name, tensors, [_shape(grouping, *output) for output in outputs])
            for name, tensors, outputs in self._calls
        ]


class Compare(Hearing):
    """Compares what a smaller model does with the steps of the full one.

    Parameters
    ----------
    steps : Sequence[Step]
        Those of all modes in which the model will run.
    kept : Sequence[int]
        How many channels of each group the model keeps.
    model : nn.Module
        The smaller model.
    """

    def __init__(self, steps: Sequence[Step], kept: Sequence[int], model: nn.Module) -> None:
        super().__init__()
        self._expected = _expected(steps, kept)
        self._names = _names(model)

    def finish(self) -> None:
        """Refuse a model that has left out the last steps."""
        missing = next(self._expected, None)
        if missing is not None:
            self._refuse("nothing more", [], missing)

    def _called(self, func: OpOverload[..., Any], args: Sequence[Any], given: dict[str, Any], output: object) -> None:
        name = _name(func)
        if name not in _QUIET:
            expected = next(self._expected, ("nothing more", (), []))
            tensors = _own(tree_leaves((args, given)), self._names)
            shapes = [list(leaf.shape) for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if (name, tensors) != expected[:2] or not all(map(_fits, shapes, expected[2])):
                self._refuse(_shown(name, tensors), shapes, expected)

    def _refuse(self, found: str, shapes: object, expected: tuple[str, Sequence[str], object]) -> None:
        name, tensors, wanted = expected
        raise UnsupportedLayerError(f"{found} gives {shapes}, where {_shown(name, tensors)} must give {wanted}")


def _expected(
    steps: Sequence[Step], kept: Sequence[int]
) -> Iterator[tuple[str, Sequence[str], list[list[int | None]]]]:
    """Yield each operator, the model's own tensors that go in, and the shapes that come out at a width."""
    counts: dict[int, int] = {}  # by the positions' identity: few of them occur in many steps

    def count(length: Length) -> int | None:
        if length is None or isinstance(length, int):
            return length
        if id(length) not in counts:
            counts[id(length)] = len(kept_positions(length, kept))
        return counts[id(length)]

    for step in steps:
        yield step.operator, step.tensors, [[count(length) for length in shape] for shape in step.outputs]


def _shape(grouping: Grouping, shape: Sequence[int], rows: Rows | None) -> Sequence[Length]:
    if rows is None:
        return [None] * len(shape)
    pairs = zip(shape, rows, strict=True)
    return [length if row is None else grouping.length(row) for length, row in pairs]


def _fits(found: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(found) == len(expected) and all(
        wanted in (length, None) for length, wanted in zip(found, expected, strict=True)
    )


def _name(called: OpOverload[..., Any]) -> str:
    return str(called.overloadpacket.__name__)


def _names(model: nn.Module) -> Mapping[int, str]:
    return {id(tensor): name for name, tensor in reversed(tensors_of(model).items())}


def _own(given: Sequence[object], names: Mapping[int, str]) -> list[str]:
    return [names[id(one)] for one in given if id(one) in names]


def _shown(operator: str, tensors: Sequence[str]) -> str:
    return f"{operator} of {', '.join(tensors)}" if tensors else operator
