"""Functions that take the shape of what they return: views, and tensors made from nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.slicing.functions.registry import function
from heterofl_flwr.slicing.lengths import Length
from heterofl_flwr.slicing.trace import Trace

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
