"""Functions that give lengths: a tensor's shape."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from heterofl_flwr.slicing.functions.registry import function
from heterofl_flwr.slicing.trace import Trace


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
