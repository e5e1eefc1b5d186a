"""Lookups: rows of a table, entries by number. The axis that is looked up in stays whole."""

from torch import Tensor

from heterofl_flwr.slicing.operators.registry import Call, operator
from heterofl_flwr.slicing.trace import Trace


@operator("embedding")
def embedding(trace: Trace, call: Call) -> None:
    """Give every number of the input the table's columns."""
    words, columns = trace.rows(call.args[0])
    trace.pin(words)
    trace.mark(call.outputs[0], [*trace.rows(call.args[1]), columns])


@operator("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(trace: Trace, call: Call) -> None:
    """Give every bag the table's columns."""
    words, columns = trace.rows(call.args[0])
    trace.pin(words)
    trace.mark(call.outputs[0], [None, columns])


@operator("index", "_unsafe_index")
def index(trace: Trace, call: Call) -> None:
    """Keep the axes that are not indexed; those of the indices come where the first of them was."""
    source: Tensor = call.args[0]
    rows = trace.rows(source)
    given = [*call.args[1], *[None] * (source.dim() - len(call.args[1]))]
    indexed = [axis for axis, one in enumerate(given) if one is not None]
    trace.pin(*(rows[axis] for axis in indexed), *(row for one in given if one is not None for row in trace.rows(one)))
    rest = [rows[axis] for axis in range(source.dim()) if axis not in indexed]
    number = call.outputs[0].dim() - len(rest)
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    first = indexed[0] if together else 0
    trace.mark(call.outputs[0], [*rest[:first], *[None] * number, *rest[first:]])


@operator("index_select", "gather")
def picked(trace: Trace, call: Call) -> None:
    """Keep the other axes."""
    source: Tensor = call.args[0]
    rows = list(trace.rows(source))
    axis = call.args[1] % max(source.dim(), 1)
    if call.operator.overloadpacket.__name__ == "gather":  # an index for each entry, so every axis is indexed
        trace.pin(*rows, *trace.rows(call.args[2]))
        return
    trace.pin(rows[axis], *trace.rows(call.args[2]))
    rows[axis] = None
    trace.mark(call.outputs[0], rows)


@operator("im2col")
def unfolded(trace: Trace, call: Call) -> None:
    """Give every channel its entries of the kernel, one after another."""
    *batch, channels, height, width = trace.rows(call.args[0])
    trace.pin(height, width)
    taps = call.args[1][0] * call.args[1][1]
    trace.mark(call.outputs[0], [*batch, None if channels is None else channels.repeat(taps), None])
