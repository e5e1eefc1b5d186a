"""Groups of channels, in convolutions and norms: either groups are dropped, or each of them becomes narrower.

Whatever leaves the finer choice of widths: a depthwise convolution drops groups, one of two wide groups keeps both. A
prefix of all channels would move some of them to other groups.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from heterofl_flwr.elastic_models.lengths import Row
from heterofl_flwr.elastic_models.operators.entrywise import broadcast
from heterofl_flwr.elastic_models.operators.registry import Call, operator
from heterofl_flwr.elastic_models.trace import Rows, Trace


def couple_groups(trace: Trace, channels: Row | None, groups: int) -> Row | None:
    """Couple the channels of groups; return the groups' positions if groups are dropped."""
    if channels is None:
        return None
    parts = channels.reshape(groups, -1)
    dropped = drops_groups(groups, len(channels))
    trace.positions.unite(parts, parts[:, :1] if dropped else parts[:1])
    return parts[:, 0] if dropped else None


def drops_groups(groups: int, channels: int) -> bool:
    """Whether groups are dropped, and not made narrower."""
    return groups >= channels // groups


def grouped(trace: Trace, channels: Row | None, weight: Tensor, groups: int, *, transposed: bool) -> Row | None:
    """Couple inputs and weight of a grouped convolution; return its outputs."""
    first, second, *_ = trace.rows(weight)
    inputs = weight.shape[0] if transposed else weight.shape[1] * groups
    if transposed:
        channels = trace.meet(channels, first)
    held = couple_groups(trace, channels, groups)
    if drops_groups(groups, inputs):
        trace.pin(second)
        each = weight.shape[1] if transposed else weight.shape[0] // groups
        outputs = None if held is None else np.repeat(held, each)
        return outputs if transposed else trace.meet(first, outputs)
    if transposed:
        return None if second is None else np.tile(second, groups)
    trace.meet(second, None if channels is None else channels[: weight.shape[1]])
    if first is not None:
        trace.positions.unite(first.reshape(groups, -1), first[: weight.shape[0] // groups])
    return first


@operator("mm", "bmm", "mv", "dot")
def product(trace: Trace, call: Call) -> None:
    """Let the axes that are summed over meet."""
    trace.mark(call.outputs[0], _product(trace, *call.inputs[:2]))


@operator("addmm", "baddbmm", "addmv", "addbmm")
def sum_and_product(trace: Trace, call: Call) -> None:
    """Let the axes that are summed over meet, and those of what is added with the product's."""
    added, one, two = call.inputs[:3]
    output = call.outputs[0]
    trace.mark(output, _product(trace, one, two))
    trace.mark(output, broadcast(trace, [added, output], output.shape))


@operator("convolution", "_convolution")
def convolution(trace: Trace, call: Call) -> None:
    """Let input channels meet the weight's."""
    inputs, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    batch, channels, *space = trace.rows(inputs)
    first, second, *kernel = trace.rows(weight)
    trace.pin(*space, *kernel)
    if groups == 1:
        outputs = first if not transposed else second
        trace.meet(channels, second if not transposed else first)
    else:
        outputs = grouped(trace, channels, weight, groups, transposed=transposed)
    if bias is not None:
        outputs = trace.meet(outputs, *trace.rows(bias))
    trace.mark(call.outputs[0], [batch, outputs, *[None] * len(space)])


def _product(trace: Trace, one: Tensor, two: Tensor) -> Rows:
    left, right = trace.rows(one), trace.rows(two)
    inner = max(len(right) - 2, 0)
    trace.meet(left[-1], right[inner])
    batch: Sequence[Row | None] = [trace.meet(left[0], right[0])] if len(left) == 3 else []
    return (*batch, *left[len(batch) : -1], *right[inner + 1 :])


@operator(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
)
def batch_norm(trace: Trace, call: Call) -> None:
    """Let the input's channels meet those of weight, bias and running statistics."""
    rows = list(trace.rows(call.inputs[0]))
    rows[1] = trace.meet(rows[1], *(trace.rows(tensor)[0] for tensor in call.inputs[1:]))
    trace.mark(call.outputs[0], rows)


@operator("native_layer_norm", "_fused_rms_norm")
def layer_norm(trace: Trace, call: Call) -> None:
    """Let the last axes of the input meet those of weight and bias. A smaller model's moments are its own."""
    rows = list(trace.rows(call.inputs[0]))
    for axis in range(-len(call.given["normalized_shape"]), 0):
        rows[axis] = trace.meet(rows[axis], *(trace.rows(tensor)[axis] for tensor in call.inputs[1:]))
    trace.mark(call.outputs[0], rows)


@operator("native_group_norm")
def group_norm(trace: Trace, call: Call) -> None:
    """Drop groups, or make each of them smaller."""
    rows = list(trace.rows(call.inputs[0]))
    rows[1] = trace.meet(rows[1], *(trace.rows(tensor)[0] for tensor in call.inputs[1:]))
    couple_groups(trace, rows[1], call.given["group"])
    trace.mark(call.outputs[0], rows)
