"""Groups of channels, in convolutions and norms: either groups are dropped, or each of them becomes narrower.

Whatever leaves the finer choice of widths: a depthwise convolution drops groups, one of two wide groups keeps both. A
prefix of all channels would move some of them to other groups.
"""

import numpy as np
from torch import Tensor

from heterofl_flwr.slicing.positions import Row
from heterofl_flwr.slicing.trace import Trace


def couple_groups(trace: Trace, channels: Row | None, groups: int) -> Row | None:
    """Couple the channels of groups; return the groups' positions if groups are dropped."""
    if channels is None:
        return None
    parts = channels.reshape(groups, -1)
    dropped = drops_groups(groups, len(channels))
    trace.positions.unite(parts, parts[:, :1] if dropped else parts[:1])
    return parts[:, 0] if dropped else None


def drops_groups(groups: int, channels: int) -> bool:
    """Whether groups are dropped, and not made narrower."""
    return groups >= channels // groups


def grouped(trace: Trace, channels: Row | None, weight: Tensor, groups: int, *, transposed: bool) -> Row | None:
    """Couple inputs and weight of a grouped convolution; return its outputs."""
    first, second, *_ = trace.rows(weight)
    inputs = weight.shape[0] if transposed else weight.shape[1] * groups
    if transposed:
        channels = trace.meet(channels, first)
    held = couple_groups(trace, channels, groups)
    if drops_groups(groups, inputs):
        trace.pin(second)
        each = weight.shape[1] if transposed else weight.shape[0] // groups
        outputs = None if held is None else np.repeat(held, each)
        return outputs if transposed else trace.meet(first, outputs)
    if transposed:
        return None if second is None else np.tile(second, groups)
    trace.meet(second, None if channels is None else channels[: weight.shape[1]])
    if first is not None:
        trace.positions.unite(first.reshape(groups, -1), first[: weight.shape[0] // groups])
    return first
