"""Whether a file says what the model says."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.export.inputs import Inputs, Run
from heterofl_flwr.nn.execution import torch_threads

TOLERANCE = 1e-4
"""How far an output may be from the model's, as a share of the largest of the model's outputs.

Float32 has seven digits. With additions in another order a deep model keeps about five of them; another model, or one
with wrong statistics, none. The share is of the largest output because an error is as large as the terms that were
added up, however small their sum.
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """The greatest distance between a file's outputs and the model's: as it is, and as a share."""

    absolute: float
    relative: float


def compare(name: str, run: Run, cuts: Sequence[Inputs], expected: Sequence[Sequence[Tensor]]) -> Difference:
    """Return how far a file's outputs are from the model's on some inputs.

    Raises
    ------
    HeteroFLError
        If they are further than ``TOLERANCE``, or of another shape or type.
    """
    absolute = relative = 0.0
    for inputs, outputs in zip(cuts, expected, strict=True):
        found = _run(name, run, inputs)
        _check_kinds(name, inputs, found, outputs)
        for one, other in zip(found, outputs, strict=True):
            distance = (one.double() - other.double()).abs().max().item()
            scale = other.double().abs().max().item()
            share = distance / scale if distance else 0.0
            absolute, relative = max(absolute, distance), max(relative, share)
            if not share <= TOLERANCE:  # NaN is not
                raise HeteroFLError(
                    f"the {name} file says something else than the model: on inputs of shape {_shapes(inputs)} its "
                    f"outputs are up to {distance:.3g} off, {share:.3g} of the largest; expected {TOLERANCE:g} at "
                    f"most. Nothing was written; please report the model and the versions of torch and onnx"
                )
    return Difference(absolute, relative)


def check_finite(cuts: Sequence[Inputs], expected: Sequence[Sequence[Tensor]]) -> None:
    """Refuse a model whose own outputs are no numbers: nothing could be compared with them."""
    for inputs, outputs in zip(cuts, expected, strict=True):
        if not all(bool(one.isfinite().all()) for one in outputs):
            raise HeteroFLError(
                f"the model's own outputs on inputs of shape {_shapes(inputs)} hold NaN or infinities: its training "
                f"has diverged, or the inputs are not what it was trained on"
            )


def _run(name: str, run: Run, inputs: Inputs) -> list[Tensor]:
    try:
        return run(inputs)
    except Exception as error:  # a guard of torch's, or the runtime's own
        first = next(iter(str(error).splitlines()), "")
        raise HeteroFLError(
            f"the {name} file does not run on inputs of shape {_shapes(inputs)}: {type(error).__name__}: {first}. "
            f"Nothing was written; if the model's code asks for a certain length, leave that axis out of dynamic"
        ) from error


def _check_kinds(name: str, inputs: Inputs, found: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    kinds = [[f"{tuple(one.shape)} {one.dtype}" for one in own] for own in (found, outputs)]
    if kinds[0] != kinds[1]:
        raise HeteroFLError(
            f"the {name} file puts out {', '.join(kinds[0])} on inputs of shape {_shapes(inputs)}; the model puts out "
            f"{', '.join(kinds[1])}. Nothing was written"
        )


def _shapes(inputs: Inputs) -> str:
    return ", ".join(str(tuple(one.shape)) for one in inputs.tensors.values())


WARM_UP = 10
"""Runs that do not count: the first ones allocate memory and choose kernels."""


def median_milliseconds(run: Run, inputs: Inputs, runs: int) -> float:
    """Return the median time of so many runs on the first example, on one thread."""
    one = inputs.map(lambda tensor: tensor[:1])
    times = []
    with torch_threads(1):
        for number in range(WARM_UP + runs):
            start = perf_counter()
            run(one)
            if number >= WARM_UP:
                times.append(perf_counter() - start)
    return 1000 * statistics.median(times)
