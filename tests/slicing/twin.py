"""The slow twin of a slice: the full model, with every entry that the slice lacks set to zero.

A channel whose weights are all zero adds nothing to any sum, so the two compute the same, except where a layer counts
its channels: the moments of a norm over channels, and the temperature of attention. There the twin counts those alone
that the slice keeps.
"""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from heterofl_flwr.core import Axes, Plan
from heterofl_flwr.core.coupled import positions


def masks(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return for each parameter which of its entries a plan holds."""
    return {name: _mask(parameter, plan.axes[name]) for name, parameter in model.named_parameters()}


def twin_of(model: nn.Module, plan: Plan) -> Callable[[Tensor], Tensor]:
    """Return what the slice computes, by the full model."""
    twin = copy.deepcopy(model)
    kept = masks(twin, plan)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter *= kept[name]
        for layer in twin.modules():
            _warm(layer, {id(parameter): kept[name] for name, parameter in twin.named_parameters()})
    norms = _Norms({id(parameter): kept[name] for name, parameter in twin.named_parameters()})

    def compute(x: Tensor) -> Tensor:
        with norms:
            return twin(x)

    return compute


def difference(one: Callable[[Tensor], Tensor], two: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    """Return by how much two functions of two inputs differ, as a part of what the inputs make in the first."""
    with torch.no_grad():
        first, second = one(inputs), two(inputs)
    return ((first - second).abs().max() / (first[0] - first[1]).abs().max()).item()


def _mask(parameter: Tensor, axes: Axes) -> Tensor:
    mask = torch.ones_like(parameter)
    for number, axis in enumerate(axes):
        held = torch.zeros(axis.full, dtype=parameter.dtype)
        held[sorted(positions(axis))] = 1
        mask *= held.view([-1 if number == place else 1 for place in range(parameter.dim())])
    return mask


_LAYER_NORM, _GROUP_NORM = (inspect.signature(norm) for norm in (F.layer_norm, F.group_norm))


class _Norms(TorchFunctionMode):
    """Norms over channels that count only those that are kept."""

    def __init__(self, kept: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.layer_norm:
            x, _, weight, bias, eps = _LAYER_NORM.bind(*args, **kwargs).args
            return _normed(x, self._kept[id(weight)], [-1], eps) * weight + bias
        if func is F.group_norm:
            x, groups, weight, bias, eps = _GROUP_NORM.bind(*args, **kwargs).args
            space = [1] * (x.dim() - 2)
            kept = self._kept[id(weight)].view(groups, -1, *space)
            parts = _normed(x.unflatten(1, (groups, -1)), kept, list(range(2, x.dim() + 1)), eps)
            return parts.flatten(1, 2) * weight.view(-1, *space) + bias.view(-1, *space)
        return func(*args, **kwargs)


def _normed(x: Tensor, kept: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """Return a tensor less its mean, by its deviation, of the entries that are kept."""
    number = kept.expand_as(x).sum(axes, keepdim=True).clamp(min=1)
    mean = (x * kept).sum(axes, keepdim=True) / number
    variance = ((x - mean) ** 2 * kept).sum(axes, keepdim=True) / number
    return (x - mean) / (variance + eps).sqrt()


def _warm(layer: nn.Module, kept: Mapping[int, Tensor]) -> None:
    """Let attention divide by the root of the slice's own head width, not the full one."""
    if isinstance(layer, nn.MultiheadAttention):
        tensors, width = [layer.in_proj_weight, layer.in_proj_bias], layer.embed_dim
        outputs = kept[id(layer.out_proj.weight)]
    elif isinstance(layer, ShiftedWindowAttention) and not isinstance(layer, ShiftedWindowAttentionV2):
        tensors, width = [layer.qkv.weight, layer.qkv.bias], layer.qkv.in_features
        outputs = kept[id(layer.proj.weight)]
    else:
        return
    held = outputs.amax(0).sum().item()
    for tensor in tensors:
        tensor[:width] *= math.sqrt(width / held)
