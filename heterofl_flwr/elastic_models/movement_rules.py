"""Rules for operators that only move entries: permutations, slices, joins, pads, indices and views.

What most of them do to positions is found by doing it. The positions of an axis are written into a tensor of whole
numbers, the operator moves these as it moves the entries, and the result says which position each of its entries
depends on. So an axis may become several, or several become one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from heterofl_flwr.elastic_models.channels import Row, Rows
from heterofl_flwr.elastic_models.lengths import Trace
from heterofl_flwr.elastic_models.rules import Call, aten, operator, stand_in

_VIEWS = ("view", "_unsafe_view", "_reshape_alias", "_reshape_copy", "squeeze", "unsqueeze")
_SHUFFLES = ("pixel_shuffle", "pixel_unshuffle")


@operator(*_VIEWS, *_SHUFFLES, "permute", "transpose", "t", "flip", "repeat", "constant_pad_nd", "select", "unbind")
@operator("slice", "split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes")
def moved(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Move the positions of each axis as the entries; what is added around them is kept at every rate."""
    args, space = call.args[1:], [*[False] * (len(rows) - 3), True, False, False]  # of an image, channels are cut
    name, shape = call.name.removesuffix("_"), call.shape
    if name == "constant_pad_nd":
        args = args[:1]  # not the value
        trace.pin(*(rows[-1 - place // 2] for place, width in enumerate(args[0]) if width < 0))  # a number in the code
    outputs: list[list[Row | None]] = [[None] * output.dim() for output in call.outputs]
    for axis, row in enumerate(rows):
        if row is not None:
            along = [-1 if number == axis else 1 for number in range(len(rows))]
            probe = torch.from_numpy(trace.positions.roots(row)).view(along).expand(shape)
            parts = probe.reshape(call.outputs[0].shape) if name in _VIEWS else call.function(probe, *args)
            for inner, part in zip(outputs, tree_leaves(parts), strict=True):
                _place(trace, inner, part, space if name in _SHUFFLES else trace.flexible)
    for output, inner in zip(call.outputs, outputs, strict=True):
        trace.mark(inner, output)


def _place(trace: Trace, rows: list[Row | None], result: Tensor, flexible: Sequence[bool]) -> None:
    """Find the axis of a result along which the positions run, and make sure that it is one."""
    # An axis of stride 0 repeats one entry, so its first says all. Of the others, those along which the numbers change
    # are parts of the old axis: (2, 4) after an axis of 8 is viewed as two.
    lines = result[tuple(slice(None if step else 1) for step in result.stride())]
    axes = [axis for axis, length in enumerate(lines.shape) if length > 1 and (lines.diff(dim=axis) != 0).any()]
    if not axes:
        trace.pin(lines.flatten()[:1].numpy())  # all entries depend on one position
        return
    may = [axis for axis in axes if len(flexible) == result.dim() and flexible[axis]]
    chosen = (may or axes)[-1]  # the innermost, of those that may shrink by the code
    table = lines.movedim(chosen, 0).reshape(lines.shape[chosen], -1).numpy()  # (entries of the axis, all others)
    # An entry of the axis now stands for a position in each of the other parts: they are kept or dropped together.
    if len(axes) > 1:
        trace.positions.unite(table, table[:, :1])
    trace.pin(rows[chosen])  # where two axes become one, the outer stays whole
    rows[chosen] = table[:, 0].copy()


@operator("expand")
def expanded(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Let axes along which one entry is repeated be cut as those that they meet."""
    shape = call.outputs[0].shape
    added = len(shape) - len(rows)
    before = zip([*[0] * added, *call.args[0].shape], [*[None] * added, *rows], shape, strict=True)
    return [trace.positions.new(new) if old < 2 <= new else row for old, row, new in before]


@operator("roll")
def rolled(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Keep the axes whole: by how much they are rolled is a number in the code."""
    trace.pin(*(rows[dim] for dim in call.named_arguments["dims"] or range(len(rows))))
    return rows


@operator("cat")
def concatenated(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Put the positions of the parts one after another; all other axes meet."""
    parts = [tensor for tensor in call.inputs if tensor.shape != (0,)]  # torch lets these join anything
    axis = call.named_arguments["dim"] % call.outputs[0].dim()
    joined = []
    for number, together in enumerate(zip(*map(trace.rows, parts), strict=True)):
        if number != axis:
            joined.append(trace.meet(*together))
        else:
            ends = [np.zeros(p.shape[axis], np.int64) if r is None else r for p, r in zip(parts, together, strict=True)]
            joined.append(np.concatenate(ends))
    return joined


@stand_in(aten.stack)
def stacked(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Concatenate along a new axis."""
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


@stand_in(aten.glu)
def gated(x: Tensor, dim: int = -1) -> Tensor:
    """Multiply the halves."""
    values, gates = torch.chunk(x, 2, dim)
    return values * gates.sigmoid()


@stand_in(aten.channel_shuffle, aten.native_channel_shuffle)
def shuffled(x: Tensor, groups: int) -> Tensor:
    """Exchange groups and what is in them; every group keeps the same of its channels."""
    return torch.flatten(x.unflatten(1, (groups, -1)).transpose(1, 2), 1, 2)


@operator("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def embedding(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Give every number of the input, or every bag of them, the table's columns."""
    words, columns = rows
    trace.pin(words)
    return [*(trace.rows(call.args[1]) if call.name == "embedding" else [None]), columns]


@operator("index", "_unsafe_index")
def indexed(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Keep the axes that are not indexed; those of the indices come where the first of them was."""
    indices = {axis: index for axis, index in enumerate(call.args[1]) if index is not None}
    trace.pin(*(rows[axis] for axis in indices), *(row for index in indices.values() for row in trace.rows(index)))
    rest = [row for axis, row in enumerate(rows) if axis not in indices]
    start_axis, end_axis = min(indices), max(indices)
    start = start_axis if len(indices) == end_axis - start_axis + 1 else 0  # axes that are not neighbours come first
    return [*rest[:start], *[None] * (call.outputs[0].dim() - len(rest)), *rest[start:]]


@operator("index_add", "index_copy")
def into_one_axis(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Keep the axis whole that is indexed; the others are those of what is put there."""
    _, _, index, source = (call.args[place] for place in range(4))
    axis, source_rows = call.args[1] % len(rows), trace.rows(source)
    trace.pin(rows[axis], source_rows[axis], *trace.rows(index))
    joined = [trace.meet(row, source_row) for row, source_row in zip(rows, source_rows, strict=True)]
    joined[axis] = None
    return joined


@operator("index_put", "_index_put_impl", "_unsafe_index_put")
def put(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Keep the axes whole that are indexed, and those before; let the others meet those of what is put there."""
    indices, values = call.args[1:3]
    trace.pin(*(row for index in indices if index is not None for row in trace.rows(index)))
    # An index of truth values stands for as many axes as it has.
    end = sum(index.dim() if index is not None and index.dtype == torch.bool else 1 for index in indices)
    # The values' axes of the indices come before those that meet the rest of the tensor.
    trace.pin(*rows[:end], *trace.rows(values)[: max(values.dim() - len(rows) + end, 0)])
    value_rows = [None] * len(rows) + list(trace.rows(values))
    for place in range(end - len(rows), 0):
        if -place <= values.dim() and values.shape[place] > 1:
            trace.meet(rows[place], value_rows[place])
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


@operator("as_strided")
def strided(trace: Trace, call: Call, rows: list[Row | None]) -> Rows | None:
    """Ignore what only changes how the same entries lie in memory; otherwise keep all of them."""
    source, output = call.args[0], call.outputs[0]
    if source is output and all(row is None or len(row) == n for row, n in zip(rows, output.shape, strict=False)):
        return None
    trace.pin(*rows)
    return [None] * output.dim()
