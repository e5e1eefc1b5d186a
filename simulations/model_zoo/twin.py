"""The slow twin of a slice: the full model, with a mask for each tensor that marks the slice's entries.

The masks of parameters come from the plan; all others follow from them operator by operator. Code that computes with a
width from a shape or a layer gets the slice's width. Nothing comes from the trace of ``elastic``.
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
    """A copy of the full model that computes the outputs of slices."""

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(model)
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def narrowed(self, plan: Plan, small: nn.Module) -> "Twin":
        """Change the twin to compute the outputs of a slice, and return it.

        The next slice must be smaller, because parameters are set to zero.
        """
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
    """Function mode that replaces single precision in the model's code, as in many norms, by double precision."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        args, kwargs = tree_map(lambda one: torch.float64 if one is torch.float32 else one, (args, kwargs or {}))
        return (Tensor.double if func is Tensor.float else func)(*args, **kwargs)


def difference(small: nn.Module, twin: Callable[..., Any], inputs: Tensor) -> float:
    """Return the largest difference of a model's output from its twin's, relative to the difference of two inputs.

    If the outputs of the two inputs are nearly equal, as in some narrow deep models, faults would not show; then raise
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
    """Set the entries outside of ``axes`` to zero."""
    for number, axis in enumerate(axes):
        if axis.local_size < axis.size:
            dropped = sorted(set(range(axis.size)) - positions(axis))
            tensor.index_fill_(number, torch.tensor(dropped), 0)
