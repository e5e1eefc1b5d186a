"""The slow twin of a slice: the full model, with a mask for each tensor that marks the slice's entries.

The masks of parameters come from the plan; all others follow from them operator by operator. Code that computes with a
width from a shape or a layer gets the slice's width. Nothing comes from the trace of ``elastic``.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from operator import is_
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from heterofl_flwr.core import Axes, Plan
from heterofl_flwr.core.axes import positions
from simulations.model_zoo.masks import Masks, UnprovenError

_FADED = 1e-9
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "pow", "rdiv", "rpow", "tensor"}
_ARITHMETIC |= {"radd", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv"}


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


def _computed(name: str) -> Callable[..., Any]:
    """Return a method of ``KeptLength`` for the method ``name`` of int.

    If the result is an int, it is a ``KeptLength`` again; otherwise it is computed with the slice's length.
    """
    plain = getattr(int, name)

    def compute(self: "KeptLength", *others: Any) -> Any:
        if others and isinstance(others[0], float):
            return getattr(float, name)(float(self), *others)
        result = plain(self, *others)
        if result is NotImplemented:
            return result
        few = plain(self.kept(), *(value_of(one) for one in others))
        return KeptLength.of(result, lambda: few) if type(result) is int else few

    return compute


class KeptLength(int):
    """A length of the full model, with a function ``kept`` that returns the slice's length."""

    kept: Callable[[], int]

    @classmethod
    def of(cls, value: int, kept: Callable[[], int]) -> "KeptLength":
        """Return the length ``value`` with the function ``kept``."""
        length = cls(value)
        length.kept = kept
        return length

    __add__, __radd__, __sub__, __rsub__ = map(_computed, ("__add__", "__radd__", "__sub__", "__rsub__"))
    __mul__, __rmul__, __floordiv__ = map(_computed, ("__mul__", "__rmul__", "__floordiv__"))
    __truediv__, __rtruediv__, __pow__ = map(_computed, ("__truediv__", "__rtruediv__", "__pow__"))

    def __float__(self) -> float:
        """Return the slice's length; the square root of a width, for example, uses this."""
        return float(self.kept())


def value_of(one: Any) -> Any:
    """Return the slice's length for a ``KeptLength``, and any other value unchanged."""
    return one.kept() if isinstance(one, KeptLength) else one


def kept_length(full: Any, few: Any) -> Any:
    """Return an attribute of a full layer, with a ``KeptLength`` for each length that differs in the slice."""
    if type(full) in (tuple, list, torch.Size) and isinstance(few, tuple | list) and len(full) == len(few):
        held = [kept_length(*pair) for pair in zip(full, few, strict=True)]
        return full if all(map(is_, held, full)) else type(full)(held)
    if type(full) in (int, KeptLength) and type(few) is int and few != full:
        return KeptLength.of(int(full), lambda: few)
    return full


class Counting(TorchFunctionMode):
    """Function mode in which shapes are ``KeptLength``, and arithmetic on tensors uses the slice's lengths."""

    def __init__(self, length: Callable[[Tensor, int], int]) -> None:
        super().__init__()
        self._length = length  # function of a tensor and an axis that returns the slice's length

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        """Call the function."""
        kwargs = dict(kwargs or {})
        if func in (Tensor.size, Tensor.shape.__get__):  # type: ignore[attr-defined]  # a property of C
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            lengths = self._lengths(args[0])
            return lengths if dim is None else lengths[dim]
        if func is F.multi_head_attention_forward:  # it would turn off the mode for the code inside it
            with mock.patch.object(F, "has_torch_function", return_value=False), self:
                return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention and kwargs.get("scale") is None:
            kwargs["scale"] = float(self._lengths(args[0])[-1]) ** -0.5
        elif getattr(func, "__name__", "").strip("_") in _ARITHMETIC:
            args, kwargs = tree_map(value_of, (args, kwargs))
        return func(*args, **kwargs)

    def _lengths(self, tensor: Tensor) -> torch.Size:
        sizes = enumerate(tensor.shape)
        return torch.Size([KeptLength.of(size, partial(self._length, tensor, axis)) for axis, size in sizes])
