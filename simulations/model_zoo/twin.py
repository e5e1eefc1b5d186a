"""The slow twin of a slice: the full model, run on tensors that know which of their entries the slice has.

The masks of parameters are the plan's, and all others follow from them operator by operator. Where code computes with
a width that it reads from a shape or a layer, it gets the slice's. Nothing comes from the trace.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from heterofl_flwr.core import Axes, Plan
from heterofl_flwr.core.axes import positions
from simulations.model_zoo.kept_lengths import Counting, kept_length
from simulations.model_zoo.masks import Masks, UnprovenError

_FADED = 1e-9


class Twin:
    """What slices compute, by a copy of the full model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(model)
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def narrowed(self, plan: Plan, small: nn.Module) -> "Twin":
        """Return this, computing what a slice does; a later one must be smaller, because zeros stay."""
        for name, parameter in self._model.named_parameters():
            mask = torch.ones_like(parameter, dtype=torch.bool)
            for tensor in (parameter, mask):
                _zero(tensor, plan.axes[name])
            self._masks[id(parameter)] = parameter, mask
        layers = dict(small.named_modules())
        for name, layer in self._model.named_modules():
            for key, value in vars(layer).items():
                layer.__dict__[key] = kept_length(value, vars(layers[name]).get(key))
        return self

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run the model."""
        masks = Masks(self._masks)
        with ExitStack() as stack:
            for mode in (sdpa_kernel(SDPBackend.MATH), masks, Counting(masks.length)):
                stack.enter_context(mode)
            return self._model(*args, **kwargs)


class _Double(TorchFunctionMode):
    """Computes in double precision also where code asks for single, as many norms do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        args, kwargs = tree_map(lambda one: torch.float64 if one is torch.float32 else one, (args, kwargs or {}))
        return (Tensor.double if func is Tensor.float else func)(*args, **kwargs)


def difference(small: nn.Module, twin: Callable[..., Any], inputs: Tensor) -> float:
    """Return by how much a model and another function of two inputs differ, as a part of what the inputs make.

    Where nothing of them arrives at the end, as in some narrow models of many layers, a fault would not show:
    ``UnprovenError``.
    """
    exact = next(small.parameters()).dtype == torch.float64
    with torch.no_grad(), _Double() if exact else nullcontext():
        first, second = (tree_leaves(model(inputs))[0] for model in (small, twin))
    made, size = (first[0] - first[1]).abs().max(), first.abs().max()
    if made <= _FADED * size:
        raise UnprovenError("what inputs make fades before the output")
    return float((first - second).abs().max() / made)


def _zero(tensor: Tensor, axes: Axes) -> None:
    """Set to zero what is not held."""
    for number, axis in enumerate(axes):
        if axis.local_size < axis.size:
            dropped = sorted(set(range(axis.size)) - positions(axis))
            tensor.index_fill_(number, torch.tensor(dropped), 0)
