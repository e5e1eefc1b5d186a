"""Operators after which axes are gone or shorter: sums, means, maxima, pools."""

import re

from heterofl_flwr.slicing.operators.registry import Call, operator
from heterofl_flwr.slicing.positions import Row
from heterofl_flwr.slicing.trace import Trace

_SUMS = ("mean", "sum", "amax", "amin", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "any", "all")
_PLACES = ("argmax", "argmin", "max", "min", "median", "mode", "topk", "sort", "kthvalue", "argsort", "cummax")
_POOLS = (
    "avg_pool",
    "max_pool{}_with_indices",
    "_adaptive_avg_pool",
    "adaptive_max_pool",
    "upsample_nearest",
    "upsample_linear",
    "upsample_bilinear",
    "upsample_bicubic",
    "upsample_trilinear",
    "reflection_pad",
    "replication_pad",
)
_DIMENSIONS = re.compile(r"([123])d")


@operator(*_SUMS, "linalg_vector_norm")
def summed(trace: Trace, call: Call) -> None:
    """Drop the axes that are summed over: a smaller model sums over what it keeps."""
    _without(trace, call)


@operator(*_PLACES)
def ranked(trace: Trace, call: Call) -> None:
    """Drop the axis that is searched; it stays whole, because a place in it has a meaning."""
    rows = trace.rows(call.inputs[0])
    axes = _axes(call)
    trace.pin(*(rows[axis] for axis in axes))
    if call.outputs[0].dim() == len(rows):
        for output in call.outputs:
            trace.mark(output, [None if axis in axes else row for axis, row in enumerate(rows)])
    else:
        _without(trace, call)


@operator(
    *(f"{name}{{}}".format(f"{n}d") if "{" not in name else name.format(f"{n}d") for name in _POOLS for n in (1, 2, 3))
)
def pooled(trace: Trace, call: Call) -> None:
    """Keep channels; space is never cut."""
    found = _DIMENSIONS.search(str(call.operator))
    rows = trace.rows(call.inputs[0])
    space = int(found[1]) if found else 0
    trace.pin(*rows[len(rows) - space :])
    for output in call.outputs:
        trace.mark(output, [*rows[: len(rows) - space], *[None] * space])


def _without(trace: Trace, call: Call) -> None:
    rows = trace.rows(call.inputs[0])
    axes = _axes(call)
    kept: list[Row | None]
    if call.given.get("keepdim"):
        kept = [None if axis in axes else row for axis, row in enumerate(rows)]
    else:
        kept = [row for axis, row in enumerate(rows) if axis not in axes]
    for output in call.outputs:
        trace.mark(output, kept)


def _axes(call: Call) -> list[int]:
    """Return the axes that an operator works along; without any it is all."""
    number = call.inputs[0].dim()
    given = call.given.get("dim")
    if given is None or given == []:
        return list(range(number))
    return [axis % number for axis in ([given] if isinstance(given, int) else given)]
