"""The slow twin of a slice: the full model, with every entry that the slice lacks set to zero.

A channel whose weights are all zero adds nothing to any sum, so the two compute the same, except where a layer counts
its channels: the moments of a norm over channels, and the temperature of attention. There the twin counts those alone
that the slice keeps, and says so.
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
from torch.utils._pytree import tree_leaves
from torchvision.models.swin_transformer import (  # type: ignore[import-untyped]
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
)

from heterofl_flwr.core import Axes, Plan
from heterofl_flwr.core.axes import positions

Model = Callable[..., Any]

_LAYER_NORM, _GROUP_NORM = (inspect.signature(norm) for norm in (F.layer_norm, F.group_norm))


class Twin:
    """What slices compute, by a copy of the full model."""

    def __init__(self, model: nn.Module) -> None:
        self.explained: set[str] = set()  # what has counted channels so far
        self._model = copy.deepcopy(model)
        self._kept: dict[int, Tensor] = {}
        self._warmth: dict[str, float] = {}

    @torch.no_grad()
    def narrowed(self, plan: Plan) -> "Twin":
        """Return this, computing what a slice does; a later one must be smaller, because zeros stay."""
        for name, layer in self._model.named_modules():
            self._warm(name, layer, plan)
        for name, parameter in self._model.named_parameters():
            _zero(parameter, plan.axes[name])
            if parameter.dim() == 1:  # norms have no others
                self._kept[id(parameter)] = kept = torch.ones_like(parameter)
                _zero(kept, plan.axes[name])
        return self

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run the model."""
        with _Norms(self._kept, self.explained):
            return self._model(*args, **kwargs)

    def _warm(self, name: str, layer: nn.Module, plan: Plan) -> None:
        """Let attention divide by the root of the slice's own head width, not the full one."""
        if isinstance(layer, nn.MultiheadAttention):
            tensors, after = (layer.in_proj_weight, layer.in_proj_bias), "out_proj"
        elif isinstance(layer, ShiftedWindowAttention) and not isinstance(layer, ShiftedWindowAttentionV2):
            tensors, after = (layer.qkv.weight, layer.qkv.bias), "proj"
        else:
            return
        self.explained.add("the temperature of attention")
        axis = plan.axes[f"{name}.{after}.weight".lstrip(".")][1]
        before, self._warmth[name] = self._warmth.get(name, 1.0), math.sqrt(axis.full / axis.kept)
        for tensor in tensors:
            tensor[: axis.full] *= self._warmth[name] / before


def difference(one: Model, two: Model, inputs: Tensor) -> float:
    """Return by how much two functions of two inputs differ, as a part of what the inputs make in the first."""
    with torch.no_grad():
        first, second = (tree_leaves(model(inputs))[0] for model in (one, two))
    return float((first - second).abs().max() / (first[0] - first[1]).abs().max())


class _Norms(TorchFunctionMode):
    """Norms over channels that count only those that are kept."""

    def __init__(self, kept: Mapping[int, Tensor], explained: set[str]) -> None:
        super().__init__()
        self._kept = kept
        self._explained = explained

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.layer_norm:
            self._explained.add("layer norm")
            x, _, weight, bias, eps = _LAYER_NORM.bind(*args, **kwargs).args
            return _normed(x, self._kept[id(weight)], [-1], eps) * weight + bias
        if func is F.group_norm:
            self._explained.add("group norm")
            x, groups, weight, bias, eps = _GROUP_NORM.bind(*args, **kwargs).args
            space = [1] * (x.dim() - 2)
            kept = self._kept[id(weight)].view(groups, -1, *space)
            parts = _normed(x.unflatten(1, (groups, -1)), kept, list(range(2, x.dim() + 1)), eps)
            return parts.flatten(1, 2) * weight.view(-1, *space) + bias.view(-1, *space)
        return func(*args, **kwargs)


def _normed(x: Tensor, kept: Tensor, axes: list[int], eps: float) -> Tensor:
    """Return a tensor less its mean, by its deviation, of the entries that are kept."""
    number = kept.expand_as(x).sum(axes, keepdim=True).clamp(min=1)
    mean = (x * kept).sum(axes, keepdim=True) / number
    variance = ((x - mean) ** 2 * kept).sum(axes, keepdim=True) / number
    return (x - mean) / (variance + eps).sqrt()


def _zero(tensor: Tensor, axes: Axes) -> None:
    """Set to zero what is not held."""
    for number, axis in enumerate(axes):
        if axis.kept < axis.full:
            dropped = sorted(set(range(axis.full)) - positions(axis))
            tensor.index_fill_(number, torch.tensor(dropped), 0)
