"""The examples that an exported model is traced and checked with."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from heterofl_flwr.errors import DataError
from heterofl_flwr.nn.execution import call

Axes = Mapping[int, str]
"""Which axes of the inputs may have any length, and what they are called."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a model is called with: tensors by position, or by name where ``named``."""

    tensors: Mapping[str, Tensor]
    named: bool

    @classmethod
    def of(cls, given: object) -> "Inputs":
        """Read a tensor, a tuple of tensors or a mapping of named ones; refuse anything else."""
        if isinstance(given, Tensor):
            given = (given,)
        named = isinstance(given, Mapping)
        items = (
            dict(given) if isinstance(given, Mapping) else dict(enumerate(given)) if isinstance(given, tuple) else {}
        )
        if not items or not all(isinstance(one, Tensor) and one.dim() for one in items.values()):
            raise DataError(
                f"the inputs are {_kinds(items) or type(given).__name__}; expected what the model is called with: a "
                f"tensor of some examples, a tuple of such tensors, or a mapping of named ones"
            )
        return cls({str(name): one.detach().cpu() for name, one in items.items()}, named)

    @property
    def given(self) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """The tensors as the model takes them."""
        return dict(self.tensors) if self.named else tuple(self.tensors.values())

    def __len__(self) -> int:
        """Return the number of examples."""
        return min(len(one) for one in self.tensors.values())

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        """Return inputs made of what a function makes of each tensor."""
        return Inputs({name: function(one) for name, one in self.tensors.items()}, self.named)

    def traced_with(self, axes: Axes) -> "Inputs":
        """Return zeros of two examples to trace with: a program keeps its example, and nobody's data shall travel."""
        return self.map(lambda one: one.new_zeros([2, *one.shape[1:]] if 0 in axes else one.shape))

    def cuts(self, axes: Axes) -> Iterator["Inputs"]:
        """Yield what a program is checked with: all examples, one, and halves of every axis of any length."""
        yield self
        if 0 in axes and len(self) > 1:
            yield self.map(lambda one: one[:1])
        for axis in axes:
            if min(one.shape[axis] for one in self.tensors.values() if one.dim() > axis) > 1:
                yield self.map(lambda one, axis=axis: _half(one, axis))  # type: ignore[misc]


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all tensors that a model puts out, in their order."""
    with torch.inference_mode():
        output = call(model, inputs.given)
    found = [leaf.clone() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if not found:
        raise DataError(f"the model returned {type(output).__name__}, in which no tensor was found")
    return found


def _half(tensor: Tensor, axis: int) -> Tensor:
    return tensor if tensor.dim() <= axis else tensor.narrow(axis, 0, max(tensor.shape[axis] // 2, 1))


def _kinds(items: Mapping[object, object]) -> str:
    return ", ".join(type(one).__name__ for one in items.values())


Run = Callable[[Inputs], list[Tensor]]
