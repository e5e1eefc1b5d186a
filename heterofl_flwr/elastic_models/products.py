"""Products with a model's own parameters, wherever its code calls them: the Scaler follows each one that shrinks.

Torch's own layers have hooks instead. What is left is code that multiplies by a parameter itself: GPT-2's ``Conv1D``,
``functional.linear(x, layer.weight)``, ``x @ self.table``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from heterofl_flwr.nn.layers import Scaler

HOOKED = (nn.Linear, _ConvNd, nn.Embedding, nn.MultiheadAttention)
"""Layers whose output is the product with their weight. A trace must not ask for it: a parametrised one is computed."""

_PRODUCTS = {
    *(F.linear, F.embedding, F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.__matmul__, Tensor.__rmatmul__),
}


class Products(TorchFunctionMode):
    """Replaces the result of each product with some parameters, or with a view or a cast of one."""

    def __init__(self, parameters: Mapping[str, Tensor], replace: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self._known = {id(parameter): (name, parameter) for name, parameter in parameters.items()}
        self._replace = replace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        """Call the function."""
        result = func(*args, **(kwargs or {}))
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        names = [self._known[id(one)][0] for one in operands if id(one) in self._known]
        if not names or not isinstance(result, Tensor):
            return result
        if func in _PRODUCTS:
            return self._replace(names[0], result)
        if len(operands) == 1:
            self._known[id(result)] = names[0], result
        return result


class ScaledProducts:
    """Hooks of a layer that scale its products with these parameters in training: each a layer and a name in it."""

    def __init__(self, scaler: Scaler, parameters: Sequence[tuple[nn.Module, str]]) -> None:
        self._scaler, self._parameters = scaler, parameters
        self._running: list[Products] = []

    def attach(self, layer: nn.Module) -> None:
        """Begin before a layer's forward, and end after it, also where that raises an error."""
        layer.register_forward_pre_hook(self.begin)
        layer.register_forward_hook(self.end, always_call=True)

    def begin(self, layer: nn.Module, args: object) -> None:
        """Scale from here on."""
        if layer.training:
            # By attribute, since torch.func puts other tensors there.
            tensors = {str(number): getattr(owner, name) for number, (owner, name) in enumerate(self._parameters)}
            self._running.append(Products(tensors, lambda _, product: self._scaler(product)))
            self._running[-1].__enter__()  # type: ignore[no-untyped-call]

    def end(self, layer: nn.Module, args: object, output: object) -> None:
        """Scale no more."""
        if layer.training and self._running:
            self._running.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]
