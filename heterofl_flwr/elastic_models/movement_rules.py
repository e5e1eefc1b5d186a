"""Trace rules of operators that only move entries, such as permutations, slices and views.

A rule records which axes of inputs and outputs are sliced alike, and which are never sliced. ``rows`` has the positions
of each axis of the first input: integers that identify its entries. An axis that is never sliced has None.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from heterofl_flwr.elastic_models.channels import Row, Rows
from heterofl_flwr.elastic_models.lengths import Trace
from heterofl_flwr.elastic_models.rules import Call, aten, operator, stand_in
from heterofl_flwr.nn.exits import Exits

_VIEWS = ("view", "_unsafe_view", "_reshape_alias", "_reshape_copy", "squeeze", "unsqueeze")
_SHUFFLES = ("pixel_shuffle", "pixel_unshuffle")


@operator(*_VIEWS, *_SHUFFLES, "permute", "transpose", "t", "flip", "repeat", "constant_pad_nd", "select", "unbind")
@operator("slice", "split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes")
def moved(trace: Trace, call: Call, rows: list[Row | None]) -> None:
    """Trace rule of operators that move entries. Entries that padding adds are always kept.

    The rule runs the operator on a tensor that has positions as its values.
    """
    args, space = call.args[1:], [*[False] * (len(rows) - 3), True, False, False]  # only channels shrink
    name, shape = call.name.removesuffix("_"), call.shape
    if name == "constant_pad_nd":
        args = args[:1]  # without the padding value
        trace.pin(*(rows[-1 - place // 2] for place, width in enumerate(args[0]) if width < 0))  # crops by a literal
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
    """Choose an axis along which the positions in ``result`` change, and store the positions of this axis in ``rows``.

    ``flexible`` has True for each axis of the result that may shrink. If positions change along several axes, the
    innermost one is chosen, if possible among those that may shrink. If they change along no axis, ``rows`` stays the
    same, and the only position is always kept.
    """
    # An axis of stride 0 repeats one entry, so only its first entry is used. If the numbers change along several axes,
    # these are parts of one old axis: (2, 4) after an axis of 8 is viewed as two axes.
    lines = result[tuple(slice(None if step else 1) for step in result.stride())]
    axes = [axis for axis, length in enumerate(lines.shape) if length > 1 and (lines.diff(dim=axis) != 0).any()]
    if not axes:
        trace.pin(lines.flatten()[:1].numpy())  # all entries depend on one position
        return
    may = [axis for axis in axes if len(flexible) == result.dim() and flexible[axis]]
    chosen = (may or axes)[-1]  # the innermost axis, if possible of those that the code lets shrink
    table = lines.movedim(chosen, 0).reshape(lines.shape[chosen], -1).numpy()  # (entries of the axis, all others)
    # An entry of the chosen axis stands for all positions in its row of the table: they are kept or dropped together.
    if len(axes) > 1:
        trace.positions.unite(table, table[:, :1])
    trace.pin(rows[chosen])  # if two old axes become one, the outer one is kept in full
    rows[chosen] = table[:, 0].copy()


@operator("expand")
def expanded(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of ``expand``: later operators decide how a repeated axis is sliced."""
    shape = call.outputs[0].shape
    added = len(shape) - len(rows)
    before = zip([*[0] * added, *call.args[0].shape], [*[None] * added, *rows], shape, strict=True)
    return [trace.positions.new(new) if old < 2 <= new else row for old, row, new in before]


@operator("roll")
def rolled(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of ``roll``: rolled axes are never sliced."""
    trace.pin(*(rows[dim] for dim in call.named_arguments["dims"] or range(len(rows))))
    return rows


@operator("cat")
def concatenated(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of ``cat``: axes other than ``dim`` are sliced alike in all inputs."""
    parts = [tensor for tensor in call.inputs if tensor.shape != (0,)]  # torch ignores empty ones
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
    """Stand-in for ``stack``, made of operators with trace rules."""
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


@stand_in(aten.glu)
def gated(x: Tensor, dim: int = -1) -> Tensor:
    """Stand-in for ``glu``, made of operators with trace rules."""
    values, gates = torch.chunk(x, 2, dim)
    return values * gates.sigmoid()


@stand_in(aten.channel_shuffle, aten.native_channel_shuffle)
def shuffled(x: Tensor, groups: int) -> Tensor:
    """Stand-in for ``channel_shuffle``, made of operators with trace rules."""
    return torch.flatten(x.unflatten(1, (groups, -1)).transpose(1, 2), 1, 2)


@stand_in(Exits)
def all_exits(exits: Exits, x: Tensor) -> Tensor:
    """Stand-in for ``Exits``: the sum couples the exits, so the logits of each are cut like the output."""
    return torch.stack(exits.all_logits(x)).sum(0)


@operator("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def embedding(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of embeddings: the table is sliced by columns, never by rows."""
    words, columns = rows
    trace.pin(words)
    return [*(trace.rows(call.args[1]) if call.name == "embedding" else [None]), columns]


@operator("index", "_unsafe_index")
def indexed(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of indexing by tensors: indexed axes are never sliced."""
    indices = {axis: index for axis, index in enumerate(call.args[1]) if index is not None}
    trace.pin(*(rows[axis] for axis in indices), *(row for index in indices.values() for row in trace.rows(index)))
    rest = [row for axis, row in enumerate(rows) if axis not in indices]
    start_axis, end_axis = min(indices), max(indices)
    start = start_axis if len(indices) == end_axis - start_axis + 1 else 0  # axes of separated indices come first
    return [*rest[:start], *[None] * (call.outputs[0].dim() - len(rest)), *rest[start:]]


@operator("index_add", "index_copy")
def into_one_axis(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of ``index_add`` and ``index_copy``: the indexed axis is never sliced."""
    _, axis, index, source = call.args[:4]
    source_rows = trace.rows(source)
    trace.pin(rows[axis], source_rows[axis], *trace.rows(index))
    joined = [trace.meet(row, source_row) for row, source_row in zip(rows, source_rows, strict=True)]
    joined[axis] = None
    return joined


@operator("index_put", "_index_put_impl", "_unsafe_index_put")
def put(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of ``index_put``: indexed axes, and axes before them, are never sliced."""
    indices, values = call.args[1:3]
    trace.pin(*(row for index in indices if index is not None for row in trace.rows(index)))
    # A boolean index of n dimensions indexes n axes.
    end = sum(index.dim() if index is not None and index.dtype == torch.bool else 1 for index in indices)
    # In ``values``, the axes of the indices come before those that match the rest of the tensor.
    trace.pin(*rows[:end], *trace.rows(values)[: max(values.dim() - len(rows) + end, 0)])
    value_rows = [None] * len(rows) + list(trace.rows(values))
    for place in range(end - len(rows), 0):
        if -place <= values.dim() and values.shape[place] > 1:
            trace.meet(rows[place], value_rows[place])
    return [*[None] * end, *rows[end:]]


@operator("view_as_real", "view_as_complex")
def complex_or_real(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of ``view_as_real`` and ``view_as_complex``: real and imaginary parts are never separated."""
    if call.name == "view_as_real":
        return [*rows, None]
    trace.pin(rows[-1])
    return rows[:-1]


@operator("index_select", "unfold")
def along_one_axis(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of ``index_select`` and ``unfold``: the selected or unfolded axis is never sliced."""
    axis = call.args[1] % max(len(rows), 1)
    trace.pin(rows[axis], *(row for index in call.inputs[1:] for row in trace.rows(index)))
    rows[axis] = None
    return [*rows, *[None] * (call.outputs[0].dim() - len(rows))]


@operator("im2col")
def unfolded(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of ``im2col``: kernel entries are kept or dropped with their channel."""
    *batch, channels, height, width = rows
    trace.pin(height, width)
    taps = call.args[1][0] * call.args[1][1]
    return [*batch, None if channels is None else channels.repeat(taps), None]


@operator("col2im")
def folded(trace: Trace, call: Call, rows: list[Row | None]) -> Rows:
    """Trace rule of ``col2im``: kernel entries of a channel are kept or dropped together."""
    *batch, channels, windows = rows
    trace.pin(windows)
    if channels is not None:
        parts = channels.reshape(-1, call.args[2][0] * call.args[2][1])
        trace.positions.unite(parts, parts[:, :1])
        channels = parts[:, 0]
    return [*batch, channels, None, None]


@operator("as_strided")
def strided(trace: Trace, call: Call, rows: list[Row | None]) -> Rows | None:
    """Trace rule of ``as_strided``: axes are never sliced, unless an in-place call keeps all lengths."""
    source, output = call.args[0], call.outputs[0]
    if source is output and all(row is None or len(row) == n for row, n in zip(rows, output.shape, strict=False)):
        return None
    trace.pin(*rows)
    return [None] * output.dim()
