"""Clipping of changes to an L2 norm, in floating point or in whole steps."""

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from heterofl_flwr.common.named_tensors import norm_between

Name = TypeVar("Name", bound=Hashable)

_ROUNDING = 1 - 1e-6
"""Factor just below 1, so that rounding cannot lift the norm of a clipped change above its bound."""


@torch.no_grad()
def clipped(before: Mapping[str, Tensor], after: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Return ``after``, with its change from ``before`` clipped to an L2 norm of at most ``clip``."""
    length = norm_between(after, before)
    if length <= clip:
        return dict(after)
    share = _ROUNDING * clip / length
    return {name: torch.lerp(before[name], tensor, share) for name, tensor in after.items()}


@torch.no_grad()
def in_steps(vector: Mapping[Name, Tensor], clip: float, step: float) -> dict[Name, Tensor]:
    """Clip a vector to an L2 norm of at most ``clip``, and return it in units of ``step``.

    The vector consists of float64 tensors by name. The resulting entries are whole numbers, rounded towards zero.
    """
    length = math.hypot(*(part.norm().item() for part in vector.values()))
    share = min(1.0, _ROUNDING * clip / length) if length else 1.0
    return {name: (part * share / step).trunc_() for name, part in vector.items()}
