"""Trace rules of torch functions that take lengths as arguments.

A rule records, for each length, the axis that gets this length. If the model's code read the length from another axis
(``x.shape[1]``), both axes shrink in proportion. If the length is a literal number, the axis is never sliced.
"""

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.nn import functional as F

from heterofl_flwr.elastic_models.channels import Row
from heterofl_flwr.elastic_models.lengths import Length, Trace, is_length
from heterofl_flwr.elastic_models.operator_rules import couple_groups, drops_groups
from heterofl_flwr.elastic_models.rules import function

Run = Callable[[], Any]

_ATTENTION = inspect.signature(F.multi_head_attention_forward)


@function(F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)
def layer_norm(
    trace: Trace, run: Run, input: Tensor, normalized_shape: Sequence[int], *_: object, **__: object
) -> object:
    """Trace rule of layer norm: record ``normalized_shape`` as the lengths of the last axes."""
    return _use_shape(trace, run(), normalized_shape)


@function(F.group_norm, torch.group_norm)
def group_norm(trace: Trace, run: Run, input: Tensor, num_groups: int, *_: object, **__: object) -> object:
    """Trace rule of group norm: keep either whole groups, or the same channels of every group."""
    output = run()
    channels = trace.rows(output)[1]
    _use_groups(trace, num_groups, couple_groups(trace, channels, num_groups), channels)
    return output


@function(torch.conv1d, torch.conv2d, torch.conv3d)
@function(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def convolution(trace: Trace, run: Run, input: Tensor, weight: Tensor, *options: Any, **named: Any) -> object:
    """Trace rule of grouped convolutions: record the argument ``groups`` as the number of groups that slices keep."""
    output = run()
    groups = named.get("groups", options[4] if len(options) > 4 else 1)
    if groups > 1:
        channels = trace.rows(output)[1]
        dropped = channels if drops_groups(groups, input.shape[1]) else None
        _use_groups(trace, groups, None if dropped is None else dropped.reshape(groups, -1)[:, 0], channels)
    return output


def _use_groups(trace: Trace, number: int, groups: Row | None, channels: Row | None) -> None:
    """Record ``number``, an argument in the model's code, as the number of groups that slices keep.

    ``groups`` has one position for each group, or is None if slices keep all groups. If slices drop groups, but
    ``number`` cannot shrink because it is not an exact ``Length``, keep all channels.
    """
    if groups is None or is_length(number):
        trace.use(number, groups)
    else:
        trace.pin(channels)


@function(F.multi_head_attention_forward)
def attention(trace: Trace, run: Run, *args: Any, **named: Any) -> object:
    """Trace rule of ``multi_head_attention_forward``: heads get narrower, their number is kept."""
    output = run()
    arguments = _ATTENTION.bind(*args, **named).arguments
    outer = trace.rows(arguments["query"])[-1]
    heads = trace.rows(arguments["out_proj_weight"])[1]
    trace.tie(outer, heads)
    if arguments.get("q_proj_weight") is not None:  # keys and values have widths of their own
        trace.tie(heads, trace.rows(arguments["q_proj_weight"])[0])
    trace.use(arguments["embed_dim_to_check"], trace.open(outer))
    trace.use(arguments["num_heads"], None)
    return output


@function(Tensor.__getitem__, Tensor.__setitem__)
def item(trace: Trace, run: Run, tensor: Tensor, index: Any, *value: object) -> object:
    """Trace rule of indexing.

    If a positive bound of a Python slice is an exact ``Length``, the entries before the bound shrink in proportion to
    the bound. If the bound is another number, these entries are always kept. If a bound is negative, all entries from
    the bound to the end of the axis are always kept.

    An integer index selects the same entry at every rate. So all entries from the start of the axis to the index are
    always kept or, if the index is negative, all entries from the index to the end.
    """
    index_tuple = index if isinstance(index, tuple) else (index,)
    rows = trace.rows(tensor)
    if not any(isinstance(part, Tensor) and part.dtype == torch.bool for part in index_tuple):
        indices = [part for part in index_tuple if part is not None]
        place = next((number for number, part in enumerate(indices) if part is Ellipsis), None)
        if place is not None:
            indices[place : place + 1] = [slice(None)] * (len(rows) - len(indices) + 1)
        for part, row in zip(indices, rows, strict=False):
            _index(trace, part, row)
    return run()


@function(Tensor.select, torch.select)
def select(trace: Trace, run: Run, input: Tensor, dim: int, index: int) -> object:
    """Trace rule of ``select``: the index selects the same entry at every rate."""
    _index(trace, index, trace.rows(input)[dim])
    return run()


def _index(trace: Trace, index: object, row: Row | None) -> None:
    if row is None:
        _keep(trace, *((index.start, index.stop) if isinstance(index, slice) else (index,)))
    elif isinstance(index, slice):
        if index.step not in (None, 1):
            _use_step(trace, index, row)
            return
        for end in (index.start, index.stop):
            if end is not None:
                _use_before(trace, end, row)
    elif isinstance(index, SupportsIndex) and not isinstance(index, Tensor):  # including NumPy integers
        place = operator.index(index)
        trace.pin(row[: place + 1] if place >= 0 else row[place:])
        trace.sliced.append(row)


def _keep(trace: Trace, *places: object) -> None:
    """Keep in full each axis whose length was used to compute one of ``places``.

    ``places`` are indices on another axis. That axis is never sliced, so the indices must be the same at every rate.
    """
    for place in places:
        if isinstance(place, Length):
            trace.use(place, None)  # refuses a length of an earlier call
            trace.pin(*place.rows)


def _use_step(trace: Trace, steps: slice, row: Row) -> None:
    """For a Python slice ``start::n``, keep or drop each n successive entries together, as rotary embeddings need.

    Keep all entries if the slice has a stop, if ``start`` is negative or at least n, or if n does not divide the length
    of the axis.
    """
    if steps.stop is None and 0 <= (steps.start or 0) < steps.step and len(row) % steps.step == 0:
        parts = row.reshape(-1, steps.step)
        trace.positions.unite(parts, parts[:, :1])
    else:
        trace.pin(row, why=f"a slice has the step {steps.step}")


def _use_before(trace: Trace, end: int, row: Row) -> None:
    """Record ``end``, a positive bound of a Python slice, as the number of entries before the bound.

    For a negative bound, keep all entries from the bound to the end of the axis at every rate.
    """
    if end < 0:
        trace.pin(row[end:])
        trace.sliced.append(row)
    elif 0 < end < len(row):
        _use_part(trace, end, row, slice(end))


def _use_part(trace: Trace, length: int, row: Row, part: slice) -> None:
    trace.use(length, row[part])
    if not is_length(length):
        trace.sliced.append(row)


@function(Tensor.chunk, torch.chunk, Tensor.unsafe_chunk, torch.unsafe_chunk, Tensor.tensor_split, torch.tensor_split)
def chunk(trace: Trace, run: Run, input: Tensor, chunks: object = None, dim: int = 0, **_: object) -> object:
    """Trace rule of ``chunk`` and ``tensor_split``: equal chunks are sliced alike, unequal chunks never."""
    if isinstance(chunks, SupportsIndex) and not isinstance(chunks, Tensor):
        length, number = trace.lengths(input)[dim], operator.index(chunks)
        if number > 0 and int(length) % number == 0:
            return split(trace, run, input, length // number, dim=dim)
    trace.pin(trace.rows(input)[dim])
    return run()


def split_along(axis: int, trace: Trace, run: Run, input: Tensor, *places: object, **named: object) -> object:
    """Trace rule of ``hsplit``, ``vsplit`` and ``dsplit``: that of ``tensor_split`` along ``axis``."""
    sections = (*places, *named.values())
    return chunk(trace, run, input, sections[0] if len(sections) == 1 else sections, dim=min(axis, input.dim() - 1))


function(Tensor.vsplit, torch.vsplit)(partial(split_along, 0))
function(Tensor.hsplit, torch.hsplit)(partial(split_along, 1))
function(Tensor.dsplit, torch.dsplit)(partial(split_along, 2))


@function(Tensor.split, torch.split, torch.functional.split, Tensor.unsafe_split, torch.unsafe_split)
@function(Tensor.split_with_sizes, torch.split_with_sizes)
@function(Tensor.unsafe_split_with_sizes, torch.unsafe_split_with_sizes)
def split(trace: Trace, run: Run, tensor: Tensor, *sizes: Any, dim: int = 0, **named: Any) -> object:
    """Trace rule of ``split``: record the size of each piece as the length of its part of axis ``dim``."""
    # The parameter of sizes has another name in each of these functions.
    size_or_sizes, dim = (*sizes, *named.values(), dim)[:2]
    row = trace.rows(tensor)[dim]
    if row is not None:
        start, is_size = 0, isinstance(size_or_sizes, int)
        for size in [size_or_sizes] * -(-len(row) // size_or_sizes) if is_size else size_or_sizes:
            trace.use(size, row[start : start + size])
            start += size
    return run()


@function(Tensor.narrow, torch.narrow)
def narrow(trace: Trace, run: Run, input: Tensor, dim: int, start: int, length: int) -> object:
    """Trace rule of ``narrow``: record ``length`` as the number of selected entries, ``start`` as that before them."""
    row = trace.rows(input)[dim]
    if row is None:
        _keep(trace, start, length)
    else:
        _use_before(trace, start, row)
        _use_part(trace, length, row, slice(start, start + length))
    return run()


@function(Tensor.size, Tensor.shape.__get__)  # type: ignore[attr-defined]  # a property of C
def size(trace: Trace, run: Run, tensor: Tensor, dim: int | None = None) -> object:
    """Trace rule of ``size`` and ``shape``: return ``Length`` objects, integers that remember their axis."""
    lengths = torch.Size(trace.lengths(tensor))
    return lengths if dim is None else lengths[dim]


@function(Tensor.numel, Tensor.nelement, torch.numel)
def numel(trace: Trace, run: Run, tensor: Tensor) -> int:
    """Trace rule of ``numel``: return the product of all lengths."""
    return math.prod(trace.lengths(tensor))


def shaped(shape: slice, trace: Trace, run: Run, /, *args: Any, **named: Any) -> object:
    """Trace rule of functions such as ``view``: record lengths in the arguments as the lengths of the result's axes.

    ``shape`` selects the positional arguments that are lengths.
    """
    return _run_with_shape(trace, run, named.get("size", named.get("shape", args[shape])))


function(torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)(partial(shaped, slice(None)))
function(Tensor.view, Tensor.reshape, torch.reshape, Tensor.expand)(partial(shaped, slice(1, None)))
function(Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones)(partial(shaped, slice(1, None)))
function(torch.full)(partial(shaped, slice(1)))
function(Tensor.new_full)(partial(shaped, slice(1, 2)))


@function(Tensor.unflatten, torch.unflatten)
def unflatten(trace: Trace, run: Run, input: Tensor, dim: int, sizes: Sequence[int]) -> object:
    """Trace rule of ``unflatten``: record ``sizes`` as the lengths of the axes that replace axis ``dim``."""
    before = dim % input.dim()
    return _run_with_shape(trace, run, [*[-1] * before, *sizes, *[-1] * (input.dim() - before - 1)])


def _run_with_shape(trace: Trace, run: Run, shape: object) -> object:
    sizes: Sequence[Any] = shape if isinstance(shape, Sequence) else ()
    if len(sizes) == 1 and isinstance(sizes[0], Sequence):
        sizes = sizes[0]  # a shape is either one sequence argument or several integer arguments
    if any(isinstance(size, Tensor) or not isinstance(size, SupportsIndex) for size in sizes):
        sizes = ()
    trace.flexible = [size == -1 or is_length(size) for size in sizes]
    output = run()
    trace.flexible = ()
    return _use_shape(trace, output, sizes)


def _use_shape(trace: Trace, output: Tensor, sizes: Sequence[int]) -> Tensor:
    """Record ``sizes``, except -1, as the lengths of the last axes of ``output``; return ``output``."""
    for length, row in zip(reversed(sizes), reversed(trace.rows(output)), strict=False):
        if length != -1:
            trace.use(length, row)
    return output
