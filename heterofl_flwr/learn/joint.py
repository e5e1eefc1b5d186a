"""The ways to compute several clients' models at once."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from heterofl_flwr.learn.precision import Precision, lowered
from heterofl_flwr.learn.stack import Layout, Stack
from heterofl_flwr.learn.unfit import UnfitError
from heterofl_flwr.learn.wide import wide_twin


class Joint(ABC):
    """A number of clients' models, computed at once.

    Parameters
    ----------
    model : nn.Module
        One of them; it is not changed.
    layouts : Sequence[Layout]
        Of its parameters.
    clients : int
        How many there are.
    """

    channels_last: ClassVar[bool]
    """Whether it is faster on a CPU with convolutions held so."""

    def __init__(self, model: nn.Module, layouts: Sequence[Layout], clients: int) -> None:
        self.layouts, self._clients = layouts, clients
        own = self._make(model)
        if own.keys() != {layout.name for layout in layouts}:
            raise UnfitError("layers share parameters")  # their copies would no longer
        self._parameters = [own[layout.name] for layout in layouts]

    def place(self, stack: Stack) -> None:
        """Compute with these values from now on."""
        for layout, parameter, rows in zip(self.layouts, self._parameters, stack.values, strict=True):
            parameter.data = layout.shaped(rows, parameter.shape)

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """Return a loss's gradients, as (clients, values), for the trained parameters; None for one without any."""
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        return [
            None if parameter.grad is None else layout.rows(parameter.grad, self._clients)
            for layout, parameter in zip(self.layouts, self._parameters, strict=True)
            if layout.trained
        ]

    @abstractmethod
    def __call__(self, inputs: Sequence[Tensor], precision: Precision = "float32") -> Tensor:
        """Return the logits (batch, clients, classes) of a batch from each client, all of one shape."""

    @abstractmethod
    def _make(self, model: nn.Module) -> Mapping[str, nn.Parameter]:
        """Make what computes; return its parameters, of whatever shape, by the names that they have in the model."""


class Wide(Joint):
    """Clients side by side in the channels of one wide model; see ``heterofl_flwr.learn.wide``."""

    channels_last = True

    def __call__(self, inputs: Sequence[Tensor], precision: Precision = "float32") -> Tensor:
        """Return the logits (batch, clients, classes)."""
        with lowered(precision, inputs[0].device):
            logits: Tensor = self._twin(torch.cat(list(inputs), 1))
        apart: Tensor = logits.unflatten(1, (self._clients, -1))
        return apart

    def _make(self, model: nn.Module) -> Mapping[str, nn.Parameter]:
        self._twin = wide_twin(model, self._clients)
        return dict(self._twin.named_parameters())


class Vmapped(Joint):
    """Any forward pass that ``torch.vmap`` can follow."""

    channels_last = False

    def __call__(self, inputs: Sequence[Tensor], precision: Precision = "float32") -> Tensor:
        """Return the logits (batch, clients, classes)."""
        if precision != "float32":
            raise UnfitError("under vmap, lower precision reaches some operations only")
        # The faster kernels of attention would be called client by client.
        with sdpa_kernel(SDPBackend.MATH):
            logits: Tensor = vmap(self._one, out_dims=1)(self._named, torch.stack(list(inputs)))
        return logits

    def _make(self, model: nn.Module) -> Mapping[str, nn.Parameter]:
        self._model = model
        named = {
            name: nn.Parameter(own.new_empty(self._clients, *own.shape), own.requires_grad)
            for name, own in model.named_parameters()
        }
        self._named: dict[str, Tensor] = {**named}
        return named

    def _one(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(self._model, parameters, (inputs,))
        return logits
