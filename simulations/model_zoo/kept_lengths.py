"""Lengths of a full model that count, where its code computes with them, as those of a slice."""

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
    """Return a method of whole numbers: a whole result is a length again, any other is the slice's."""
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
    """A length of the full model that knows that of a slice."""

    kept: Callable[[], int]

    @classmethod
    def of(cls, value: int, kept: Callable[[], int]) -> "KeptLength":
        """Return a length."""
        length = cls(value)
        length.kept = kept
        return length

    __add__, __radd__, __sub__, __rsub__ = map(_computed, ("__add__", "__radd__", "__sub__", "__rsub__"))
    __mul__, __rmul__, __floordiv__ = map(_computed, ("__mul__", "__rmul__", "__floordiv__"))
    __truediv__, __rtruediv__, __pow__ = map(_computed, ("__truediv__", "__rtruediv__", "__pow__"))

    def __float__(self) -> float:
        """Return the slice's length, as the root of a width does."""
        return float(self.kept())


def value_of(one: Any) -> Any:
    """Return the slice's length for a length, and anything else as it is."""
    return one.kept() if isinstance(one, KeptLength) else one


def kept_length(full: Any, few: Any) -> Any:
    """Return what a layer of the full model holds, as a length, or a sequence of them, if it is less in the slice."""
    if type(full) in (tuple, list, torch.Size) and isinstance(few, tuple | list) and len(full) == len(few):
        held = [kept_length(*pair) for pair in zip(full, few, strict=True)]
        return full if all(map(is_, held, full)) else type(full)(held)
    if type(full) in (int, KeptLength) and type(few) is int and few != full:
        return KeptLength.of(int(full), lambda: few)
    return full


class Counting(TorchFunctionMode):
    """Gives code lengths that know those of the slice, and takes these where it computes with them."""

    def __init__(self, length: Callable[[Tensor, int], int]) -> None:
        super().__init__()
        self._length = length  # how many entries of an axis the slice has

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        """Call the function."""
        kwargs = dict(kwargs or {})
        if func in (Tensor.size, Tensor.shape.__get__):  # type: ignore[attr-defined]  # a property of C
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            lengths = self._lengths(args[0])
            return lengths if dim is None else lengths[dim]
        if func is F.multi_head_attention_forward:  # it asks for a function mode once, and then no more
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
