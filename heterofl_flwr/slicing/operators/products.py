"""Sums of products: matrices and convolutions."""

from collections.abc import Sequence

from torch import Tensor

from heterofl_flwr.slicing.operators.entrywise import broadcast
from heterofl_flwr.slicing.operators.groups import grouped
from heterofl_flwr.slicing.operators.registry import Call, operator
from heterofl_flwr.slicing.positions import Row
from heterofl_flwr.slicing.trace import Rows, Trace


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
