"""Rules for functions of torch that code hands lengths to: what it says by that about axes."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from heterofl_flwr.elastic_models.channels import Row
from heterofl_flwr.elastic_models.operator_rules import couple_groups, drops_groups
from heterofl_flwr.elastic_models.rules import Call, function
from heterofl_flwr.elastic_models.trace import Length, Trace

_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
_ATTENTION = inspect.signature(F.multi_head_attention_forward)


@function(F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)
def layer_norm(trace: Trace, call: Call) -> object:
    """Let the last axes of the input be as long as the code says."""
    output = call.run()
    shape = call.argument(1, "normalized_shape", default=())
    rows = trace.rows(output)
    for wanted, row in zip(shape, rows[len(rows) - len(shape) :], strict=True):
        trace.use(wanted, row)
    return output


@function(F.group_norm, torch.group_norm)
def group_norm(trace: Trace, call: Call) -> object:
    """Let the number of groups shrink with the channels, or stay."""
    output = call.run()
    groups = call.argument(1, "num_groups", default=1)
    channels = trace.rows(output)[1]
    _use_groups(trace, groups, couple_groups(trace, channels, groups), channels)
    return output


@function(torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSED)
def convolution(trace: Trace, call: Call) -> object:
    """Let the number of groups shrink with the channels, or stay."""
    output = call.run()
    groups = call.argument(6, "groups", default=1)
    if groups > 1:
        channels = trace.rows(output)[1]
        weight = call.argument(1, "weight")
        inputs = weight.shape[0] if call.function in _TRANSPOSED else weight.shape[1] * groups
        dropped = None if channels is None or not drops_groups(groups, inputs) else channels.reshape(groups, -1)[:, 0]
        _use_groups(trace, groups, dropped, channels)
    return output


def _use_groups(trace: Trace, number: int, groups: Row | None, channels: Row | None) -> None:
    """Let a layer's number of groups be that of the groups kept; one that is written in the code does not shrink."""
    if groups is None or isinstance(number, Length):
        trace.use(number, groups)
    else:
        trace.pin(channels)


@function(F.multi_head_attention_forward)
def attention(trace: Trace, call: Call) -> object:
    """Let the embedding be as wide as all heads together, as this function asks."""
    output = call.run()
    given = _ATTENTION.bind(*call.args, **call.kwargs).arguments
    outer = trace.rows(given["query"])[-1]
    trace.tie(outer, trace.rows(given["out_proj_weight"])[1])
    trace.use(given["embed_dim_to_check"], trace.open(outer))
    trace.use(given["num_heads"], None)
    return output


@function(Tensor.__getitem__, Tensor.__setitem__)
def item(trace: Trace, call: Call) -> object:
    """Let what lies before each end of a slice be as long as the code says."""
    given = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    rows = trace.rows(call.args[0])
    if not any(isinstance(one, Tensor) and one.dtype == torch.bool for one in given):
        said = [one for one in given if one is not None]
        place = next((number for number, one in enumerate(said) if one is Ellipsis), None)
        if place is not None:
            said[place : place + 1] = [slice(None)] * (len(rows) - len(said) + 1)
        for one, row in zip(said, rows, strict=False):
            _index(trace, one, row)
    return call.run()


@function(Tensor.select, torch.select)
def select(trace: Trace, call: Call) -> object:
    """Keep the entry and all before it."""
    _index(trace, call.argument(2, "index"), trace.rows(call.args[0])[call.argument(1, "dim")])
    return call.run()


def _index(trace: Trace, one: object, row: Row | None) -> None:
    if row is None:
        return
    if isinstance(one, slice):
        if one.step not in (None, 1):
            trace.pin(row)
        for end in (one.start, one.stop):
            if end is not None:
                _use_before(trace, end, row)
    elif isinstance(one, int):
        trace.pin(row[: one + 1] if one >= 0 else row[one:])


def _use_before(trace: Trace, end: int, row: Row) -> None:
    """Let what lies before an end, or after one that is counted from the back, be as long as the code says."""
    if end < 0:
        trace.pin(row[end:])
    elif 0 < end < len(row):
        trace.use(end, row[:end])


@function(Tensor.chunk, torch.chunk, Tensor.tensor_split, torch.tensor_split)
def chunk(trace: Trace, call: Call) -> object:
    """Let all chunks keep equally many entries."""
    number = call.argument(1, "chunks")
    row = trace.rows(call.args[0])[call.argument(2, "dim", default=0)]
    if row is not None and isinstance(number, int) and len(row) % number == 0:
        first, *others = row.reshape(number, -1)
        for other in others:
            trace.tie(other, first)
    else:
        trace.pin(row)
    return call.run()


@function(Tensor.split, torch.split, torch.functional.split, Tensor.split_with_sizes, torch.split_with_sizes)
def split(trace: Trace, call: Call) -> object:
    """Let each part be as long as the code says."""
    sizes = call.argument(1, "split_size_or_sections", "split_size", "split_sizes", default=0)
    row = trace.rows(call.args[0])[call.argument(2, "dim", default=0)]
    if row is not None:
        start = 0
        for size in [sizes] * -(-len(row) // sizes) if isinstance(sizes, int) else sizes:
            trace.use(size, row[start : start + size])
            start += size
    return call.run()


@function(Tensor.narrow, torch.narrow)
def narrow(trace: Trace, call: Call) -> object:
    """Let the part and what lies before it be as long as the code says."""
    axis, start, length = (call.argument(place, name) for place, name in enumerate(("dim", "start", "length"), 1))
    row = trace.rows(call.args[0])[axis]
    if row is not None:
        _use_before(trace, start, row)
        trace.use(length, row[start : start + length])
    return call.run()


@function(Tensor.unbind, torch.unbind)
def unbind(trace: Trace, call: Call) -> object:
    """Keep the axis whole: code counts on the number of what comes out."""
    trace.pin(trace.rows(call.args[0])[call.argument(1, "dim", default=0)])
    return call.run()


@function(Tensor.size, Tensor.shape.__get__)  # type: ignore[attr-defined]  # a property of C
def size(trace: Trace, call: Call) -> object:
    """Return the shape, or one length of it, as lengths that remember their axes."""
    lengths = torch.Size(trace.lengths(call.args[0]))
    axis = call.argument(1, "dim")
    return lengths if axis is None else lengths[axis]


@function(Tensor.numel, Tensor.nelement, torch.numel)
def numel(trace: Trace, call: Call) -> int:
    """Return the product of all lengths."""
    return math.prod(trace.lengths(call.args[0]))


# Where the arguments have the shape of the result.
_SHAPES: dict[object, slice] = {
    **dict.fromkeys((Tensor.view, Tensor.reshape, torch.reshape, Tensor.expand), slice(1, None)),
    **dict.fromkeys((Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones), slice(1, None)),
    **dict.fromkeys((torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn), slice(0, None)),
    torch.full: slice(0, 1),
    Tensor.new_full: slice(1, 2),
}


@function(*_SHAPES)
def shaped(trace: Trace, call: Call) -> object:
    """Take note of the shape that the code gives."""
    given = call.kwargs.get("size", call.kwargs.get("shape", call.args[_SHAPES[call.function]]))
    return _run_with_shape(trace, call, given)


@function(Tensor.unflatten, torch.unflatten)
def unflatten(trace: Trace, call: Call) -> object:
    """Take note of the lengths into which an axis is split."""
    number = call.args[0].dim()
    axis = call.argument(1, "dim", default=0) % number
    sizes = call.argument(2, "sizes", default=())
    return _run_with_shape(trace, call, [*[-1] * axis, *sizes, *[-1] * (number - axis - 1)])


def _run_with_shape(trace: Trace, call: Call, given: object) -> object:
    """Call the function; let each axis of the result be cut as the length says that the code gave for it."""
    sizes: Sequence[Any] = given if isinstance(given, Sequence) else ()
    if len(sizes) == 1 and isinstance(sizes[0], Sequence):
        sizes = sizes[0]  # a shape may be given as one sequence, or its lengths one by one
    if not all(isinstance(size, int) for size in sizes):
        sizes = ()
    trace.flexible = [size == -1 or isinstance(size, Length) for size in sizes]
    output = call.run()
    trace.flexible = ()
    if len(sizes) == output.dim():
        for wanted, row in zip(sizes, trace.rows(output), strict=True):
            if wanted != -1:
                trace.use(wanted, row)
    return output
