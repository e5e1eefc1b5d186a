"""Check that a slice calls the same operators as the full model."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from heterofl_flwr.common.errors import UnsupportedLayerError, first_line
from heterofl_flwr.elastic_models.channels import Places, kept_positions
from heterofl_flwr.elastic_models.rules import Call, Operators
from heterofl_flwr.elastic_models.skeleton import Skeleton

MODES = (True, False)
"""Training and evaluation mode: some models have parts that run in only one of them."""

QUIET = {"view", "_unsafe_view", "clone", "expand", "alias", "detach", "as_strided", "as_strided_", "copy_", "empty"}
"""Operators that are not compared.

Torch chooses between view and copy by strides, which differ at width 1. A wrong view makes a later operator differ.
"""


SCALES = {"mul", "div", "addmm", "baddbmm", "addbmm", "addmv"}
"""Operators whose plain number arguments may depend on a width: attention divides by the root of the head dimension."""

_POWERS = (-1, -1 / 2, -1 / 4, 1 / 4, 1 / 2, 1)


class Step(NamedTuple):
    """An operator call in the trace of the full model.

    ``outputs`` has the shape of each output. In a shape, an axis that is sliced has its ``Places`` instead of a
    length, and an axis whose length in a slice is unknown has None.
    """

    operator: str
    tensors: list[str]  # names of the parameters and buffers among the inputs
    outputs: list[list[int | Places | None]]  # shape of each output
    numbers: tuple[float, ...] = ()  # plain numbers among the arguments
    terms: int = 0  # number of terms in each entry of a sum


class DifferentStepError(Exception):
    """Raised if a slice calls an operator differently from the full model.

    It is not a ``TypeError``, because the binary operators of ``Tensor`` catch a ``TypeError``.
    """


def check_slice(
    steps: Sequence[Step] | None,
    widths: Sequence[int],
    sizes: Sequence[int],
    skeleton: Skeleton,
    example_inputs: object,
    rate: float,
) -> tuple[set[str], set[str]]:
    """Run a slice, and compare its operator calls with ``steps``, the calls of the full model.

    With ``steps=None``, the slice only has to run. ``widths`` and ``sizes`` are the numbers of channels by group, in
    the slice and in the full model. Return two sets of layers: those that divide a sum over channels by the full
    model's number of channels, and those with a factor that changes with the rate, but not like a power of a width
    (``_POWERS``). Raise ``UnsupportedLayerError`` at the first other difference.
    """
    expected, literal, odd_factors = _expected(steps or (), widths), set[str](), set[str]()
    sums: dict[int, tuple[Tensor, int]] = {}  # sums with fewer terms than in the full model, and the number there
    powers = [1.0, *((few / size) ** power for few, size in set(zip(widths, sizes, strict=True)) for power in _POWERS)]

    def compare(called: Call) -> None:
        if steps is None:
            return
        # A sum that is moved or scaled is still a sum.
        terms = sums.get(id(called.inputs[0]), (None, 0))[1] if len(called.inputs) == 1 else 0
        if called.name not in QUIET:
            shapes: Any = [list(output.shape) for output in called.outputs]
            step = next(expected, _END)
            _compare(Step(called.name, skeleton.names_in(called), shapes, called.numbers), step)
            if called.name.removesuffix("_") in SCALES and not _follow_widths(called.numbers, step.numbers, powers):
                odd_factors.add(f"{skeleton.place} ({called.numbers[0]:g} for {step.numbers[0]:g})")
            if terms and math.isclose(called.divisor, terms):
                literal.add(skeleton.place)
            if called.terms != step.terms:
                terms = step.terms
        if terms:
            sums.update((id(output), (output, terms)) for output in called.outputs)

    try:
        for mode in MODES:
            skeleton.run(example_inputs, mode, Operators(compare))
        _compare(_END, next(expected, _END))
        return literal, odd_factors
    except Exception as error:  # the model's code and torch raise various errors if widths do not match
        is_ours = isinstance(error, UnsupportedLayerError | DifferentStepError)
        difference = str(error) if is_ours else first_line(error)
        raise UnsupportedLayerError(
            f"at rate {rate:g} {skeleton.place} does something else than in the full model: {difference}. Its "
            f"code, or code that runs before it, depends on a width in a way that cannot be followed. Keep the "
            f"layers whose channels it reads whole (fixed=...), or take the width from a tensor's shape"
        ) from None


_END = Step("nothing more", [], [])


def _expected(steps: Sequence[Step], widths: Sequence[int]) -> Iterator[Step]:
    arrays = {id(x): x for step in steps for shape in step.outputs for x in shape if isinstance(x, np.ndarray)}
    counts = {key: len(kept_positions(array, widths)) for key, array in arrays.items()}  # steps share few arrays
    for step in steps:
        yield step._replace(outputs=[[counts.get(id(x), x) for x in shape] for shape in step.outputs])


def _compare(step: Step, expected: Step) -> None:
    fit = all(
        len(shape) == len(expected_shape)
        and all(length in (few, None) for few, length in zip(shape, expected_shape, strict=True))
        for shape, expected_shape in zip(step.outputs, expected.outputs, strict=False)
    )
    if step[:2] != expected[:2] or not fit:
        text, expected_text = (
            f"{operator} of {', '.join(names)}" if names else operator for operator, names, *_ in (step, expected)
        )
        raise DifferentStepError(f"{text} gives {step.outputs}, where {expected_text} must give {expected.outputs}")
    # Compared as text, because a NaN does not equal itself.
    if step.operator.removesuffix("_") not in SCALES and repr(step.numbers) != repr(expected.numbers):
        raise DifferentStepError(
            f"{step.operator} computes with {step.numbers}, where it must be {expected.numbers}, so the width is "
            f"used as a value"
        )


def _follow_widths(numbers: Sequence[float], full_numbers: Sequence[float], powers: Sequence[float]) -> bool:
    return all(
        number == full_number
        or isinstance(number, bool)
        or (full_number and any(math.isclose(number / full_number, power, rel_tol=1e-6) for power in powers))
        for number, full_number in zip(numbers, full_numbers, strict=True)
    )
