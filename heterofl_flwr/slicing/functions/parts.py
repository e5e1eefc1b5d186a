"""Functions that take a part of an axis: slices, chunks, splits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.slicing.functions.registry import function
from heterofl_flwr.slicing.positions import Row
from heterofl_flwr.slicing.trace import Trace


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
