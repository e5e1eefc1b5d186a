"""Operators that work entry by entry, so that axes which meet are cut alike; and tensors made from nothing."""

import re
from collections.abc import Sequence

from torch import Tensor

from heterofl_flwr.elastic_models.lengths import Row
from heterofl_flwr.elastic_models.operators.registry import Call, operator
from heterofl_flwr.elastic_models.trace import Rows, Trace

# What has no tag of its own that says so. A softmax over channels is one over those that are kept.
_ALSO = (
    "copy",
    "fill",
    "zero",
    "normal",
    "uniform",
    "bernoulli",
    "native_dropout",
    "detach",
    "alias",
    "lift_fresh",
    "_to_copy",
    "_softmax",
    "_safe_softmax",
    "_log_softmax",
    "cumsum",
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
    "hardswish",
    "hardtanh",
    "relu6",
    "_prelu_kernel",
)


@operator("add", *_ALSO)
def entrywise(trace: Trace, call: Call) -> None:
    """Let the axes of all inputs that meet be cut alike."""
    for output in call.outputs:
        trace.mark(output, broadcast(trace, call.inputs, output.shape))


@operator("empty", "zeros", "ones", "full", "rand", "randn", "new_empty", "new_zeros", "new_ones", "new_full")
def made(trace: Trace, call: Call) -> None:
    """Let a tensor of equal or random entries be cut as those that it meets."""
    for output in call.outputs:
        trace.fresh(output)


def broadcast(trace: Trace, tensors: Sequence[Tensor], shape: Sequence[int]) -> Rows:
    """Return the axes of tensors that are broadcast to a shape."""
    known = [(tensor, trace.rows(tensor)) for tensor in tensors]
    rows = []
    for axis in range(-len(shape), 0):
        found = [r[axis] for tensor, r in known if tensor.dim() >= -axis and tensor.shape[axis] == shape[axis]]
        rows.append(trace.meet(*found) if found and shape[axis] > 1 else None)
    return tuple(rows)


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
