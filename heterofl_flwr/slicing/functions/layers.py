"""Functions of layers that take a length or a number of groups: norms, convolutions, attention."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from heterofl_flwr.slicing.functions.registry import function
from heterofl_flwr.slicing.lengths import Length
from heterofl_flwr.slicing.operators.groups import couple_groups, drops_groups
from heterofl_flwr.slicing.positions import Row
from heterofl_flwr.slicing.trace import Trace

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
