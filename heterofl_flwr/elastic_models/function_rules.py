"""The registry of functions that code hands lengths to: what it says by that about axes."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from heterofl_flwr.elastic_models.lengths import Length, Row
from heterofl_flwr.elastic_models.operators.layers import couple_groups, drops_groups
from heterofl_flwr.elastic_models.trace import Trace

Function = Callable[[Trace, Callable[..., Any], Sequence[Any], Mapping[str, Any]], Any]
"""Runs a function of torch on its arguments, takes note of the lengths among them, and returns what it returned."""

_functions: dict[object, Function] = {}


def function(*called: object) -> Callable[[Function], Function]:
    """Make the decorated function the rule of these functions of torch."""

    def add(rule: Function) -> Function:
        _functions.update(dict.fromkeys(called, rule))
        return rule

    return add


def find_function(called: object) -> Function | None:
    """Return the rule of a function, or None for one that takes no lengths."""
    return _functions.get(called)


_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
_ATTENTION = inspect.signature(F.multi_head_attention_forward)


@function(F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)
def layer_norm(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Let the last axes of the input be as long as the code says."""
    output = called(*args, **kwargs)
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    rows = trace.rows(output)
    for wanted, row in zip(shape, rows[len(rows) - len(shape) :], strict=True):
        trace.use(wanted, row)
    return output


@function(F.group_norm, torch.group_norm)
def group_norm(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Let the number of groups shrink with the channels, or stay."""
    output = called(*args, **kwargs)
    groups = kwargs.get("num_groups", args[1] if len(args) > 1 else 1)
    channels = trace.rows(output)[1]
    _use_groups(trace, groups, couple_groups(trace, channels, groups), channels)
    return output


@function(torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSED)
def convolution(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Let the number of groups shrink with the channels, or stay."""
    output = called(*args, **kwargs)
    groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
    if groups > 1:
        channels = trace.rows(output)[1]
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        inputs = weight.shape[0] if called in _TRANSPOSED else weight.shape[1] * groups
        if channels is not None and drops_groups(groups, inputs):
            _use_groups(trace, groups, channels.reshape(groups, -1)[:, 0], channels)
        else:
            trace.use(groups, None)
    return output


@function(F.multi_head_attention_forward)
def attention(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Let the embedding be as wide as all heads together, as this function asks."""
    output = called(*args, **kwargs)
    given = _ATTENTION.bind(*args, **kwargs).arguments
    query: Tensor = given["query"]
    inner = trace.rows(given["out_proj_weight"])[1]
    outer = trace.rows(query)[-1]
    trace.tie(outer, inner)
    trace.use(given["embed_dim_to_check"], trace.open(outer))
    trace.use(given["num_heads"], None)
    return output


def _use_groups(trace: Trace, number: int, groups: Row | None, channels: Row | None) -> None:
    """Let a layer's number of groups be that of the groups kept; one that is written in the code does not shrink."""
    if groups is None:
        trace.use(number, None)
    elif isinstance(number, Length):
        trace.use(number, groups)
    else:
        trace.pin(channels)


@function(Tensor.__getitem__, Tensor.__setitem__)
def item(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Let what lies before each end of a slice be as long as the code says."""
    given = args[1] if isinstance(args[1], tuple) else (args[1],)
    rows = trace.rows(args[0])
    if not any(isinstance(one, Tensor) and one.dtype == torch.bool for one in given):
        for one, row in _by_axis(given, rows):
            _take(trace, one, row)
    return called(*args, **kwargs)


@function(Tensor.chunk, torch.chunk, Tensor.tensor_split, torch.tensor_split)
def chunk(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Let all chunks keep equally many entries."""
    number = kwargs.get("chunks", args[1] if len(args) > 1 else None)
    row = trace.rows(args[0])[_axis(args, kwargs)]
    if row is not None and isinstance(number, int) and len(row) % number == 0:
        _equal(trace, row.reshape(number, -1))
    else:
        trace.pin(row)
    return called(*args, **kwargs)


@function(Tensor.split, torch.split, torch.functional.split, Tensor.split_with_sizes, torch.split_with_sizes)
def split(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Let each part be as long as the code says."""
    named = next(
        (kwargs[name] for name in ("split_size_or_sections", "split_size", "split_sizes") if name in kwargs), 0
    )
    sizes = args[1] if len(args) > 1 else named
    row = trace.rows(args[0])[_axis(args, kwargs)]
    if row is not None:
        start = 0
        given = [sizes] * -(-len(row) // sizes) if isinstance(sizes, int) else sizes
        for size in given:
            trace.use(size, row[start : start + size])
            start += size
    return called(*args, **kwargs)


@function(Tensor.narrow, torch.narrow)
def narrow(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Let the part and what lies before it be as long as the code says."""
    axis, start, length = _named(args, kwargs, "dim", "start", "length")
    row = trace.rows(args[0])[axis]
    if row is not None:
        _before(trace, start, row)
        trace.use(length, row[start : start + length])
    return called(*args, **kwargs)


@function(Tensor.select, torch.select)
def select(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Keep the entry and all before it."""
    axis, number = _named(args, kwargs, "dim", "index")
    _take(trace, number, trace.rows(args[0])[axis])
    return called(*args, **kwargs)


@function(Tensor.unbind, torch.unbind)
def unbind(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Keep the axis whole: code counts on the number of what comes out."""
    trace.pin(trace.rows(args[0])[_axis(args, kwargs, after=1)])
    return called(*args, **kwargs)


def _by_axis(given: Sequence[Any], rows: Sequence[Row | None]) -> list[tuple[Any, Row | None]]:
    """Pair what is between the brackets with the axes that it is for."""
    said = [one for one in given if one is not None]
    used = sum(one.dim() if isinstance(one, Tensor) and one.dtype == torch.bool else 1 for one in said)
    if Ellipsis in [one for one in said if not isinstance(one, Tensor)]:
        place = next(number for number, one in enumerate(said) if one is Ellipsis)
        said[place : place + 1] = [slice(None)] * (len(rows) - used + 1)
    return list(zip(said, rows, strict=False))


def _take(trace: Trace, one: object, row: Row | None) -> None:
    if row is None:
        return
    if isinstance(one, slice):
        if one.step not in (None, 1):
            trace.pin(row)
        for end in (one.start, one.stop):
            if end is not None:
                _before(trace, end, row)
    elif isinstance(one, int):
        trace.pin(row[: one + 1] if one >= 0 else row[one:])


def _before(trace: Trace, end: int, row: Row) -> None:
    """Let what lies before an end, or after one that is counted from the back, be as long as the code says."""
    if end < 0:
        trace.pin(row[end:])
    elif 0 < end < len(row):
        trace.use(end, row[:end])


def _equal(trace: Trace, parts: Row) -> None:
    for part in parts[1:]:
        trace.tie(part, parts[0])


def _named(args: Sequence[Any], kwargs: Mapping[str, Any], *names: str) -> list[Any]:
    """Return the arguments after the tensor, which may be given by name."""
    return [*args[1:], *(kwargs[name] for name in names[len(args) - 1 :])]


def _axis(args: Sequence[Any], kwargs: Mapping[str, Any], after: int = 2) -> int:
    """Return the axis that a call names: ``dim``, or what comes after so many arguments."""
    axis = kwargs.get("dim", args[after] if len(args) > after else 0)
    return int(axis)


@function(Tensor.shape.__get__)  # type: ignore[attr-defined]  # a property of C
def shape(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Size:
    """Return the shape as lengths that remember their axes."""
    return torch.Size(trace.lengths(args[0]))


@function(Tensor.size)
def size(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Return the shape, or one length of it."""
    lengths = torch.Size(trace.lengths(args[0]))
    axis = args[1] if len(args) > 1 else kwargs.get("dim")
    return lengths if axis is None else lengths[axis]


@function(Tensor.numel, Tensor.nelement, torch.numel)
def numel(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Return the product of all lengths."""
    return math.prod(trace.lengths(args[0]))


_VIEWS = (
    Tensor.view,
    Tensor.reshape,
    torch.reshape,
    Tensor.expand,
    Tensor.new_empty,
    Tensor.new_zeros,
    Tensor.new_ones,
)
_FILLED = (Tensor.new_full, torch.full)
_MADE = (torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)


@function(*_VIEWS)
def of_tensor(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Take note of the shape that follows the tensor."""
    given = kwargs.get("size", kwargs.get("shape", args[1:]))
    return _sized(trace, called, args, kwargs, given)


@function(*_MADE)
def from_nothing(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Take note of the shape."""
    return _sized(trace, called, args, kwargs, kwargs.get("size", args))


@function(*_FILLED)
def filled(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Take note of the shape, which stands before the value."""
    given = kwargs.get("size", args[1:2] if called is Tensor.new_full else args[:1])
    return _sized(trace, called, args, kwargs, given)


@function(Tensor.unflatten, torch.unflatten)
def unflatten(trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Take note of the lengths into which an axis is split."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else 0) % args[0].dim()
    sizes = kwargs.get("sizes", args[2] if len(args) > 2 else ())
    others = [-1] * (args[0].dim() - axis - 1)
    return _sized(trace, called, args, kwargs, [*[-1] * axis, *sizes, *others])


def _sized(
    trace: Trace, called: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], given: object
) -> object:
    """Call the function; let each axis of the result be cut as the length says that the code gave for it."""
    sizes = _flat(given)
    trace.flexible = [size == -1 or isinstance(size, Length) for size in sizes]
    output = called(*args, **kwargs)
    trace.flexible = ()
    if len(sizes) == output.dim():
        for wanted, row in zip(sizes, trace.rows(output), strict=True):
            if wanted != -1:
                trace.use(wanted, row)
    return output


def _flat(given: object) -> list[Any]:
    """Return the lengths of a shape, which may be given one by one or as one sequence."""
    if not isinstance(given, Sequence):
        return []
    if len(given) == 1 and isinstance(given[0], Sequence):
        given = given[0]
    return list(given) if all(isinstance(size, int) for size in given) else []
