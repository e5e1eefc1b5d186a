"""Views: an axis becomes several, or several become one. What a view does to positions is found by doing it.

The positions of an axis are written into a tensor of whole numbers; the view orders these as it orders the entries, and
the result says which position each of its entries depends on.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor

from heterofl_flwr.elastic_models.lengths import Row
from heterofl_flwr.elastic_models.operators.registry import Call, operator
from heterofl_flwr.elastic_models.trace import Trace


@operator("view", "_unsafe_view", "_reshape_alias", "_reshape_copy", "squeeze", "unsqueeze")
def viewed(trace: Trace, call: Call) -> None:
    """Follow the entries of each axis among the axes that it is split into or joined with."""
    _view(trace, call.args[0], call.outputs[0])


@operator("as_strided")
def strided(trace: Trace, call: Call) -> None:
    """Pass by what only changes how the same entries lie in memory; otherwise keep all of them."""
    source, output = call.args[0], call.outputs[0]
    rows = trace.rows(source)
    if source is output and all(row is None or len(row) == n for row, n in zip(rows, output.shape, strict=False)):
        return
    trace.pin(*rows)
    trace.mark(output, [None] * output.dim())


@operator("pixel_shuffle", "pixel_unshuffle")
def between_space_and_channels(trace: Trace, call: Call) -> None:
    """Cut channels: those that become one another's space are cut together."""
    rows = list(trace.rows(call.args[0]))
    *batch, channels, height, width = rows
    trace.pin(height, width)
    ratio = call.args[1] ** 2
    if channels is not None and call.operator.overloadpacket.__name__ == "pixel_shuffle":
        parts = channels.reshape(-1, ratio)
        trace.positions.unite(parts, parts[:, :1])
        channels = parts[:, 0]
    elif channels is not None:
        channels = channels.repeat(ratio)
    trace.mark(call.outputs[0], [*batch, channels, None, None])


@operator("channel_shuffle", "native_channel_shuffle")
def shuffled(trace: Trace, call: Call) -> None:
    """Let every group keep the same of its channels."""
    rows = list(trace.rows(call.args[0]))
    row = rows[1]
    if row is not None:
        parts = row.reshape(call.args[1], -1)
        trace.positions.unite(parts, parts[0])
        rows[1] = parts.T.flatten()
    trace.mark(call.outputs[0], rows)


def _view(trace: Trace, source: Tensor, output: Tensor) -> None:
    rows: list[Row | None] = [None] * output.dim()
    for axis, row in enumerate(trace.rows(source)):
        if row is not None:
            (first, last), (start, stop) = block(source.shape, output.shape, axis)
            along = [-1 if number == axis else 1 for number in range(first, last)]
            probe = torch.from_numpy(trace.positions.roots(row)).view(along).expand(source.shape[first:last])
            inner = rows[start:stop]
            _place(trace, inner, probe.reshape(output.shape[start:stop]), trace.flexible[start:stop])
            rows[start:stop] = inner
    trace.mark(output, rows)


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
    return (_last(own, low), own.index(high)), (_last(others, low), others.index(high))


def _last(values: Sequence[int], value: int) -> int:
    return len(values) - 1 - list(reversed(values)).index(value)


def _place(trace: Trace, rows: list[Row | None], result: Tensor, flexible: Sequence[bool]) -> None:
    """Find the axis of a result along which the positions run, and make sure that it is one."""
    axes = [axis for axis in range(result.dim()) if _varies(result, axis)]
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


def _varies(result: Tensor, axis: int) -> bool:
    length = result.shape[axis]
    return length > 1 and bool((result.narrow(axis, 1, length - 1) != result.narrow(axis, 0, 1)).any())
