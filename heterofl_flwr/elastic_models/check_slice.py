"""Check a smaller model against the steps of the full one: its code must do the same at every rate."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from heterofl_flwr.common.errors import UnsupportedLayerError, first_line
from heterofl_flwr.elastic_models.channels import Places, kept_positions
from heterofl_flwr.elastic_models.rules import Call, Operators
from heterofl_flwr.elastic_models.skeleton import Skeleton

MODES = (True, False)
"""Training and evaluation: some models have parts that work in one of them only."""

QUIET = {"view", "_unsafe_view", "clone", "expand", "alias", "detach", "as_strided", "as_strided_", "copy_", "empty"}
"""Whether torch views or copies depends on strides, so on widths of 1. What was moved wrongly shows in what follows."""


class Step(NamedTuple):
    """A call of an operator that is the same at every rate.

    A length of an output is always the same, as many as are kept of some positions, or any.
    """

    operator: str
    tensors: list[str]  # the model's own that go in
    outputs: list[list[int | Places | None]]  # the shape of each tensor that comes out
    divisor: float | None = None  # the number by which a sum is divided, if that is the full length of what is cut


def check_slice(
    steps: Sequence[Step] | None, kept: Sequence[int], skeleton: Skeleton, example_inputs: object, rate: float
) -> set[str]:
    """Run a smaller model, beside the steps of the trace if given; raise an error where it does anything else.

    Layers are returned that divide a sum by the full number of what was added.
    """
    expected, literal = _expected(steps or (), kept), set()

    def compare(called: Call) -> None:
        if steps is not None and called.name not in QUIET:
            shapes: Any = [list(output.shape) for output in called.outputs]
            step = next(expected, _END)
            _compare(Step(called.name, skeleton.names_in(called), shapes), step)
            if step.divisor is not None and step.divisor == called.divisor:
                literal.add(skeleton.place)

    try:
        for mode in MODES:
            skeleton.run(example_inputs, mode, Operators(compare))
        _compare(_END, next(expected, _END))
        return literal
    except Exception as error:  # whatever the model's own code, and torch's, raise where widths do not fit
        said = str(error) if isinstance(error, UnsupportedLayerError) else first_line(error)
        raise UnsupportedLayerError(
            f"at rate {rate:g} {skeleton.place} does something else than in the full model: {said}. Its "
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
            f"{operator} of {', '.join(own)}" if own else operator for operator, own, *_ in (found, expected)
        )
        raise UnsupportedLayerError(f"{said} gives {found.outputs}, where {wanted} must give {expected.outputs}")
