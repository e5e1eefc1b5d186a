"""Rules for operators that only move entries: permutations, slices, joins, pads, indices and views.

What a view does to positions is found by doing it. An axis becomes several, or several become one; the positions of an
axis are written into a tensor of whole numbers, the view orders these as it orders the entries, and the result says
which position each of its entries depends on.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from heterofl_flwr.elastic_models.channels import Row, Rows
from heterofl_flwr.elastic_models.lengths import Trace
from heterofl_flwr.elastic_models.operator_rules import broadcast
from heterofl_flwr.elastic_models.rules import Call, operator


@operator("permute", "transpose", "t")
def permuted(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Put the axes in their new order."""
    numbered = torch.empty(1).as_strided([1] * len(rows), list(range(len(rows))))
    return [rows[axis] for axis in call.function(numbered, *call.args[1:]).stride()]  # each axis' stride is its number


@operator("slice", "split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes")
def sliced(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Slice the axis' positions as its entries."""
    axis = call.given["dim"] % len(rows)
    row = rows[axis]
    parts: list[Row | None] = [None] * len(call.outputs)
    if row is not None:
        given = {**call.given, "self": torch.from_numpy(row), "dim": 0}
        parts = [part.numpy() for part in tree_leaves(call.function(**given))]
    for output, part in zip(call.outputs, parts, strict=True):
        if part is not None and len(part) == 1:  # an axis of one entry is never cut
            trace.pin(part)
        trace.mark([*rows[:axis], part, *rows[axis + 1 :]], output)


@operator("select", "unbind")
def selected(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Drop an axis; the entry that is selected is kept at every rate, for all that comes out depends on it."""
    row = rows.pop(call.given["dim"] % len(rows))
    if row is not None:
        trace.pin(row if "index" not in call.given else row[[call.given["index"]]])
    trace.mark(rows, *call.outputs)


@operator("expand")
def expanded(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Let axes along which one entry is repeated be cut as those that they meet."""
    shape = call.outputs[0].shape
    added = len(shape) - len(rows)
    before = zip([*[0] * added, *call.args[0].shape], [*[None] * added, *rows], shape, strict=True)
    return [trace.positions.new(new) if old < 2 <= new else row for old, row, new in before]


@operator("repeat")
def repeated(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Repeat the positions."""
    times = call.args[1]
    pairs = zip([*[None] * (len(times) - len(rows)), *rows], times, strict=True)
    return [None if row is None else np.tile(row, number) for row, number in pairs]


@operator("flip", "roll")
def turned(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Turn the positions around. An axis that is rolled stays whole: by how much is a number in the code."""
    for dim in call.given["dims"] or range(len(rows)):
        row = rows[dim]
        if "shifts" in call.given:
            trace.pin(row)
        elif row is not None:
            rows[dim] = row[::-1].copy()
    return rows


@operator("constant_pad_nd")
def padded(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Keep what is added at every rate, because its width is a number in the code."""
    ends = call.args[1]
    for axis, (before, after) in enumerate(zip(ends[::2], ends[1::2], strict=True), 1):
        row = rows[-axis]
        if row is not None and min(before, after) < 0:
            trace.pin(row)
            rows[-axis] = None
        elif row is not None:
            rows[-axis] = np.pad(row, (before, after))
    return rows


@operator("cat")
def concatenated(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Put the positions of the parts one after another; all other axes meet."""
    parts = [tensor for tensor in call.inputs if tensor.shape != (0,)]  # torch lets these join anything
    axis = call.given["dim"] % call.outputs[0].dim()
    found = []
    for number, together in enumerate(zip(*map(trace.rows, parts), strict=True)):
        if number != axis:
            found.append(trace.meet(*together))
        else:
            ends = [np.zeros(p.shape[axis], np.int64) if r is None else r for p, r in zip(parts, together, strict=True)]
            found.append(np.concatenate(ends))
    return found


@operator("stack")
def stacked(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Let all axes meet; the new one is kept whole."""
    found = broadcast(trace, call.inputs, call.inputs[0].shape)
    found.insert(call.given["dim"] % call.outputs[0].dim(), None)
    return found


@operator("glu")
def gated(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Let the two halves be cut alike."""
    row = rows[axis := call.given["dim"]]
    rows[axis] = None if row is None else trace.meet(*row.reshape(2, -1))
    return rows


@operator("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def embedding(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Give every number of the input, or every bag of them, the table's columns."""
    words, columns = rows
    trace.pin(words)
    return [*(trace.rows(call.args[1]) if call.name == "embedding" else [None]), columns]


@operator("index", "_unsafe_index")
def indexed(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Keep the axes that are not indexed; those of the indices come where the first of them was."""
    given = {axis: one for axis, one in enumerate(call.args[1]) if one is not None}
    trace.pin(*(rows[axis] for axis in given), *(row for one in given.values() for row in trace.rows(one)))
    rest = [row for axis, row in enumerate(rows) if axis not in given]
    first, last = min(given), max(given)
    start = first if len(given) == last - first + 1 else 0  # axes that are not neighbours come first
    return [*rest[:start], *[None] * (call.outputs[0].dim() - len(rest)), *rest[start:]]


@operator("gather", "scatter", "scatter_add", "scatter_reduce", "masked_scatter", "take", "put")
@operator("nll_loss_forward", "nll_loss2d_forward")
def gathered(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Keep all axes whole: there is an index for each entry, so every axis is indexed."""
    trace.pin(*(row for tensor in call.inputs for row in trace.rows(tensor)))


@operator("index_add", "index_copy")
def into_one_axis(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Keep the axis whole that is indexed; the others are those of what is put there."""
    _, _, index, source = (call.args[place] for place in range(4))
    axis, others = call.args[1] % len(rows), trace.rows(source)
    trace.pin(rows[axis], others[axis], *trace.rows(index))
    found = [trace.meet(one, other) for one, other in zip(rows, others, strict=True)]
    found[axis] = None
    return found


@operator("index_put", "_index_put_impl", "_unsafe_index_put")
def put(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Keep the axes whole that are indexed, and those before; let the others meet those of what is put there."""
    indices, values = call.args[1:3]
    trace.pin(*(row for one in indices if one is not None for row in trace.rows(one)))
    # An index of truth values stands for as many axes as it has.
    end = sum(one.dim() if one is not None and one.dtype == torch.bool else 1 for one in indices)
    trace.pin(*rows[:end])
    others = [None] * len(rows) + list(trace.rows(values))
    for place in range(end - len(rows), 0):
        if -place <= values.dim() and values.shape[place] > 1:
            trace.meet(rows[place], others[place])
    return [*[None] * end, *rows[end:]]


@operator("view_as_real", "view_as_complex")
def complex_or_real(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Add or drop the axis of real and imaginary parts, which is whole."""
    if call.name == "view_as_real":
        return [*rows, None]
    trace.pin(rows[-1])
    return rows[:-1]


@operator("index_select", "unfold")
def along_one_axis(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Keep the axis whole that is indexed, or along which windows are counted off; a window is a new axis."""
    axis = call.args[1] % max(len(rows), 1)
    trace.pin(rows[axis], *(row for index in call.inputs[1:] for row in trace.rows(index)))
    rows[axis] = None
    return [*rows, *[None] * (call.outputs[0].dim() - len(rows))]


@operator("im2col")
def unfolded(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Give every channel its entries of the kernel, one after another."""
    *batch, channels, height, width = rows
    trace.pin(height, width)
    taps = call.args[1][0] * call.args[1][1]
    return [*batch, None if channels is None else channels.repeat(taps), None]


@operator("col2im")
def folded(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Cut the entries of the kernel together that are added to one channel."""
    *batch, channels, windows = rows
    trace.pin(windows)
    if channels is not None:
        parts = channels.reshape(-1, call.args[2][0] * call.args[2][1])
        trace.positions.unite(parts, parts[:, :1])
        channels = parts[:, 0]
    return [*batch, channels, None, None]


@operator("pixel_shuffle", "pixel_unshuffle")
def between_space_and_channels(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Cut channels: those that become one another's space are cut together."""
    *batch, channels, height, width = rows
    trace.pin(height, width)
    ratio = call.args[1] ** 2
    if channels is not None and call.name == "pixel_shuffle":
        parts = channels.reshape(-1, ratio)
        trace.positions.unite(parts, parts[:, :1])
        channels = parts[:, 0]
    elif channels is not None:
        channels = channels.repeat(ratio)
    return [*batch, channels, None, None]


@operator("channel_shuffle", "native_channel_shuffle")
def shuffled(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Let every group keep the same of its channels."""
    if rows[1] is not None:
        parts = rows[1].reshape(call.args[1], -1)
        trace.positions.unite(parts, parts[0])
        rows[1] = parts.T.flatten()
    return rows


@operator("as_strided")
def strided(trace: Trace, call: Call, rows: list[Row | None]) -> Rows | None:
    """Ignore what only changes how the same entries lie in memory; otherwise keep all of them."""
    source, output = call.args[0], call.outputs[0]
    if source is output and all(row is None or len(row) == n for row, n in zip(rows, output.shape, strict=False)):
        return None
    trace.pin(*rows)
    return [None] * output.dim()


@operator("view", "_unsafe_view", "_reshape_alias", "_reshape_copy", "squeeze", "unsqueeze")
def viewed(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Follow the entries of each axis among the axes that it is split into or joined with."""
    source, output = call.args[0], call.outputs[0]
    found: list[Row | None] = [None] * output.dim()
    for axis, row in enumerate(rows):
        if row is not None:
            (first, last), (start, stop) = block(source.shape, output.shape, axis)
            along = [-1 if number == axis else 1 for number in range(first, last)]
            probe = torch.from_numpy(trace.positions.roots(row)).view(along).expand(source.shape[first:last])
            inner = found[start:stop]
            _place(trace, inner, probe.reshape(output.shape[start:stop]), trace.flexible[start:stop])
            found[start:stop] = inner
    return found


def block(before: Sequence[int], after: Sequence[int], axis: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the fewest neighbouring axes around one, and those of the other shape that they become.

    >>> block((2, 12, 5), (2, 3, 4, 5), 1)
    ((1, 2), (1, 3))
    """
    own, others = (list(accumulate(shape, mul, initial=1)) for shape in (before, after))
    common = [product for product in own if product in others]
    low = max(product for product in common if product <= own[axis])
    high = min(product for product in common if product >= own[axis + 1])
    # Axes of length 1 repeat a product; they stay outside.
    first, start = (len(shape) - 1 - shape[::-1].index(low) for shape in (own, others))
    return (first, own.index(high)), (start, others.index(high))


def _place(trace: Trace, rows: list[Row | None], result: Tensor, flexible: Sequence[bool]) -> None:
    """Find the axis of a result along which the positions run, and make sure that it is one."""
    axes = [axis for axis, length in enumerate(result.shape) if length > 1 and (result.diff(dim=axis) != 0).any()]
    if not axes:
        trace.pin(result.flatten()[:1].numpy())  # all entries depend on one position
        return
    may = [axis for axis in axes if len(flexible) == result.dim() and flexible[axis]]
    chosen = (may or axes)[-1]  # the innermost, of those that may shrink by the code
    table = result.movedim(chosen, 0).reshape(result.shape[chosen], -1).numpy()
    if len(axes) > 1:
        trace.positions.unite(table, table[:, :1])
    trace.pin(rows[chosen])  # where two axes become one, the outer stays whole
    rows[chosen] = table[:, 0].copy()
