"""Operators that work entry by entry, so that axes which meet are cut alike; and tensors made from nothing."""

from collections.abc import Sequence

from torch import Tensor

from heterofl_flwr.slicing.operators.registry import Call, operator
from heterofl_flwr.slicing.trace import Rows, Trace

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
