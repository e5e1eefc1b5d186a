"""``KeptLength``: a length of the full model; the model's code computes with the slice's length instead."""

from collections.abc import Callable
from operator import is_
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "pow", "rdiv", "rpow", "tensor"}
_ARITHMETIC |= {"radd", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv"}


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
        def one(axis: int, length: int) -> KeptLength:
            return KeptLength.of(length, lambda: self._length(tensor, axis))

        return torch.Size([one(axis, length) for axis, length in enumerate(tensor.shape)])
