"""Operators that only move entries: permutations, slices, joins, pads. Views have a module of their own."""

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from heterofl_flwr.elastic_models.lengths import Row
from heterofl_flwr.elastic_models.operators.entrywise import broadcast
from heterofl_flwr.elastic_models.operators.registry import Call, operator
from heterofl_flwr.elastic_models.trace import Trace


@operator("permute", "transpose", "t")
def permuted(trace: Trace, call: Call) -> None:
    """Put the axes in their new order."""
    source: Tensor = call.args[0]
    numbered = torch.empty(1).as_strided([1] * source.dim(), list(range(source.dim())))
    order = call.operator(numbered, *call.args[1:]).stride()  # each axis' stride is its number
    rows = trace.rows(source)
    trace.mark(call.outputs[0], [rows[axis] for axis in order])


@operator("slice", "split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes")
def parted(trace: Trace, call: Call) -> None:
    """Take the same part of the axis' positions as of its entries."""
    rows = list(trace.rows(call.args[0]))
    axis = call.given["dim"] % len(rows)
    row = rows[axis]
    parts: list[Row | None] = [None] * len(call.outputs)
    if row is not None:
        given = {**call.given, "self": torch.from_numpy(row), "dim": 0}
        parts = [part.numpy() for part in tree_leaves(call.operator(**given))]
    for output, part in zip(call.outputs, parts, strict=True):
        if part is not None and len(part) == 1:  # an axis of one entry is never cut
            trace.pin(part)
        trace.mark(output, [*rows[:axis], part, *rows[axis + 1 :]])


@operator("select", "unbind")
def picked_apart(trace: Trace, call: Call) -> None:
    """Drop an axis; the entry that is picked is kept at every rate, for all that comes out depends on it."""
    rows = list(trace.rows(call.args[0]))
    row = rows.pop(call.given["dim"] % len(rows))
    if row is not None:
        trace.pin(row if "index" not in call.given else row[[call.given["index"]]])
    for output in call.outputs:
        trace.mark(output, rows)


@operator("expand")
def expanded(trace: Trace, call: Call) -> None:
    """Let axes along which one entry is repeated be cut as those that they meet."""
    source, output = call.args[0], call.outputs[0]
    rows = trace.rows(source)
    found: list[Row | None] = []
    for axis in range(-output.dim(), 0):
        length = output.shape[axis]
        repeated = length > 1 and (source.dim() < -axis or source.shape[axis] == 1)
        found.append(trace.positions.new(length) if repeated else rows[axis] if source.dim() >= -axis else None)
    trace.mark(output, found)


@operator("repeat")
def repeated(trace: Trace, call: Call) -> None:
    """Repeat the positions."""
    times = call.args[1]
    rows = [None] * (len(times) - call.args[0].dim()) + list(trace.rows(call.args[0]))
    found = [None if row is None else np.tile(row, number) for row, number in zip(rows, times, strict=True)]
    trace.mark(call.outputs[0], found)


@operator("flip", "roll")
def turned(trace: Trace, call: Call) -> None:
    """Turn the positions around. An axis that is rolled stays whole: by how much is a number in the code."""
    rows = list(trace.rows(call.args[0]))
    for dim in call.given["dims"] or range(len(rows)):
        row = rows[dim]
        if "shifts" in call.given:
            trace.pin(row)
        elif row is not None:
            rows[dim] = row[::-1].copy()
    trace.mark(call.outputs[0], rows)


@operator("unfold")
def windowed(trace: Trace, call: Call) -> None:
    """Keep the axis whole along which windows are counted off."""
    rows = list(trace.rows(call.args[0]))
    axis = call.args[1] % len(rows)
    trace.pin(rows[axis])
    rows[axis] = None
    trace.mark(call.outputs[0], [*rows, None])


@operator("constant_pad_nd")
def padded(trace: Trace, call: Call) -> None:
    """Keep what is added at every rate, because its width is a number in the code."""
    source: Tensor = call.args[0]
    rows = list(trace.rows(source))
    ends = call.args[1]
    for axis, (before, after) in enumerate(zip(ends[::2], ends[1::2], strict=True), 1):
        row = rows[-axis]
        if row is not None and min(before, after) < 0:
            trace.pin(row)
            rows[-axis] = None
        elif row is not None:
            rows[-axis] = np.pad(row, (before, after))
    trace.mark(call.outputs[0], rows)


@operator("cat")
def joined(trace: Trace, call: Call) -> None:
    """Put the positions of the parts one after another; all other axes meet."""
    parts = [tensor for tensor in call.inputs if tensor.shape != (0,)]  # torch lets these join anything
    axis = call.given["dim"] % call.outputs[0].dim()
    rows = []
    for number, together in enumerate(zip(*map(trace.rows, parts), strict=True)):
        if number != axis:
            rows.append(trace.meet(*together))
        else:
            ends = [np.zeros(p.shape[axis], np.int64) if r is None else r for p, r in zip(parts, together, strict=True)]
            rows.append(np.concatenate(ends))
    trace.mark(call.outputs[0], rows)


@operator("stack")
def stacked(trace: Trace, call: Call) -> None:
    """Let all axes meet; the new one is kept whole."""
    axis = call.given["dim"] % call.outputs[0].dim()
    rows = list(broadcast(trace, call.inputs, call.inputs[0].shape))
    trace.mark(call.outputs[0], [*rows[:axis], None, *rows[axis:]])


@operator("glu")
def gated(trace: Trace, call: Call) -> None:
    """Let the two halves be cut alike."""
    rows = list(trace.rows(call.args[0]))
    axis = call.given["dim"]
    row = rows[axis]
    rows[axis] = None if row is None else trace.meet(*row.reshape(2, -1))
    trace.mark(call.outputs[0], rows)


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
