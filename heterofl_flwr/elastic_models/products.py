"""Products with a model's own parameters, wherever its code calls them: the Scaler follows each one that shrinks.

Torch's own layers have hooks instead. What is left is code that multiplies by a parameter itself: GPT-2's ``Conv1D``,
``functional.linear(x, layer.weight)``, ``x @ self.table``.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.layers import Scaler

HOOKED = (nn.Linear, _ConvNd, nn.Embedding, nn.MultiheadAttention)
"""Layers whose output is the product with their weight. A trace must not ask for it: a parametrised one is computed."""

_PRODUCTS = {
    *(F.linear, F.embedding, F.conv1d, F.conv2d, F.conv3d),
    *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.__matmul__, Tensor.__rmatmul__),
    *(torch.mv, Tensor.mv, torch.inner, Tensor.inner, torch.tensordot, F.bilinear, F.embedding_bag),
}


class Product(NamedTuple):
    """A product with a parameter, as the code says it: which parameter, and what was done with it."""

    parameter: str
    steps: tuple[str, ...]


class Products(TorchFunctionMode):
    """Replaces the result of each product with some parameters, or with a view or a cast of one."""

    def __init__(self, parameters: Mapping[str, Tensor], replace: Callable[[Product, Tensor], Tensor]) -> None:
        super().__init__()
        self._known = {id(parameter): (Product(name, ()), parameter) for name, parameter in parameters.items()}
        self._replace = replace

    def __torch_function__(
        self, func: Any, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        """Call the function."""
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs))
        operands = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        place = next((place for place, one in enumerate(operands) if id(one) in self._known), None)
        if place is None or not isinstance(result, Tensor):
            return result
        known, _ = self._known[id(operands[place])]
        # Of a property, such as Tensor.T, the function is its getter. The text is an equation of einsum.
        name = getattr(func, "__name__", "")
        name = func.__self__.__name__ if name == "__get__" else name
        steps = (*known.steps, name, str(place), *(leaf for leaf in leaves if isinstance(leaf, str)))
        if func in _PRODUCTS:
            return self._replace(known._replace(steps=steps), result)
        if len(operands) == 1:
            self._known[id(result)] = known._replace(steps=steps), result
        return result


class ScaledProducts:
    """Hooks of a layer that scale the products that its own code calls, in training.

    ``parameters`` are, by name, each a layer and a name in it; ``products`` are those with them that are scaled. All of
    a model's share ``running``, as a product belongs to the innermost layer that is at work: one of torch's own has
    none here, because it has a hook of its own.
    """

    def __init__(
        self,
        scaler: Scaler,
        parameters: Mapping[str, tuple[nn.Module, str]],
        products: Collection[Product],
        running: list[tuple["ScaledProducts", Products, object]],
    ) -> None:
        self._scaler, self._parameters, self._products = scaler, parameters, products
        self._running = running  # with how autograd recorded when the layer began

    def attach(self, layer: nn.Module) -> None:
        """Begin before a layer's forward, and end after it, also where that raises an error."""
        layer.register_forward_pre_hook(self.begin)
        layer.register_forward_hook(self.end, always_call=True)

    def begin(self, layer: nn.Module, args: object) -> None:
        """Scale from here on."""
        if layer.training:
            # By attribute, since torch.func puts other tensors there.
            tensors = {name: getattr(owner, own) for name, (owner, own) in self._parameters.items()}
            self._running.append((self, Products(tensors, self._scale), _recording()))
            self._running[-1][1].__enter__()  # type: ignore[no-untyped-call]

    def _scale(self, product: Product, result: Tensor) -> Tensor:
        innermost, _, recording = self._running[-1]
        if innermost is not self or product not in self._products:
            return result
        if _recording() != recording:
            raise ConfigError(
                f"the product with {product.parameter} is in torch.utils.checkpoint or no_grad, which its layer enters "
                f"itself: it is computed again outside of the layer, without its Scaler, and gradients are wrong. "
                f"Give checkpoint a layer, not a method or function; or build with scaler=False"
            )
        return self._scaler(result)  # type: ignore[no-any-return]

    def end(self, layer: nn.Module, args: object, output: object) -> None:
        """Scale no more."""
        if layer.training and self._running:
            _, mode, _ = self._running.pop()
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _recording() -> object:
    """Return how autograd records: whether at all, and what takes the tensors, as within ``torch.utils.checkpoint``."""
    top: Any = torch._C._autograd._top_saved_tensors_default_hooks
    return torch.is_grad_enabled(), top(False)
