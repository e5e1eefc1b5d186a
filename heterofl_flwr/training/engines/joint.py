"""The parameters of several clients, one row for each, and one step of SGD for all of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from heterofl_flwr.training.device import Precision, lowered
from heterofl_flwr.training.engines.sgd import fused
from heterofl_flwr.training.engines.wide import wide_twin
from heterofl_flwr.training.options import TrainOptions, UnfitError


@dataclass(frozen=True, slots=True)
class Layout:
    """How the values of one parameter lie in a row.

    Attributes
    ----------
    name
        In ``named_parameters()``.
    shape
        In each client's model.
    trained
        Whether it needs a gradient.
    channels_last
        Whether it is the weight of an image convolution in the order of its memory.
    """

    name: str
    shape: torch.Size
    trained: bool
    channels_last: bool

    def rows(self, tensor: Tensor, clients: int) -> Tensor:
        """Return a parameter or gradient of several clients as (clients, values)."""
        return (tensor.permute(0, 2, 3, 1) if self.channels_last else tensor).reshape(clients, -1)

    def shaped(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Return rows as a view of this shape, which ends like the parameter's."""
        if not self.channels_last:
            return rows.view(tuple(shape))
        number, channels, height, width = shape
        return rows.view(number, height, width, channels).permute(0, 3, 1, 2)


def layouts_of(models: Sequence[nn.Module], *, channels_last: bool) -> list[Layout]:
    """Return the layouts that models share, those of trained parameters first.

    Parameters
    ----------
    models : Sequence[nn.Module]
        The clients' models.
    channels_last : bool
        Whether to hold image convolutions so on a CPU, where they are faster so.

    Raises
    ------
    UnfitError
        If the models differ in more than the values of their parameters.
    """
    model = models[0]
    forms = [_form(other) for other in models]
    if any(form != forms[0] for form in forms):
        raise UnfitError("the clients' models differ in their parameters or buffers")
    for other in models[1:]:
        if not all(map(torch.equal, model.buffers(), other.buffers())):
            raise UnfitError("the clients' models differ in the values of their buffers")
    images = {
        id(layer.weight)
        for layer in model.modules()
        if channels_last and isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.device.type == "cpu"
    }
    layouts = [
        Layout(name, parameter.shape, parameter.requires_grad, id(parameter) in images)
        for name, parameter in model.named_parameters()
    ]
    return sorted(layouts, key=lambda layout: not layout.trained)


def _form(model: nn.Module) -> list[tuple[object, ...]]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [(name, own.shape, own.dtype, own.device, own.requires_grad) for name, own in tensors]


@dataclass(frozen=True, slots=True)
class Stack:
    """Clients' parameters in the order of their layouts, each (clients, values), and what SGD keeps of them.

    Attributes
    ----------
    values
        Of all parameters, the trained ones first.
    momentum, received
        Of the trained ones; empty without momentum, and without the pull of FedProx.
    """

    values: list[Tensor]
    momentum: list[Tensor]
    received: list[Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, models: Sequence[nn.Module], layouts: Sequence[Layout], options: TrainOptions) -> "Stack":
        """Return the models' values, copied, and no momentum yet."""
        states = [dict(model.named_parameters()) for model in models]
        values = [torch.cat([layout.rows(state[layout.name], 1) for state in states]) for layout in layouts]
        trained = values[: sum(layout.trained for layout in layouts)]
        return cls(
            values,
            [torch.zeros_like(value) for value in trained] if options.momentum else [],
            [value.clone() for value in trained] if options.proximal else [],
        )

    def part(self, clients: Sequence[int]) -> "Stack":
        """Return a copy of some clients' rows."""
        rows = torch.tensor(clients, device=self.values[0].device)
        return Stack(*([own[rows] for own in owns] for owns in (self.values, self.momentum, self.received)))

    def put(self, clients: Sequence[int], part: "Stack") -> None:
        """Write rows back that ``part`` has copied."""
        rows = torch.tensor(clients, device=self.values[0].device)
        for own, new in zip(self.values + self.momentum, part.values + part.momentum, strict=True):
            own[rows] = new

    def double(self) -> "Stack":
        """Return a copy in float64."""
        return Stack(*([own.double() for own in owns] for owns in (self.values, self.momentum, self.received)))

    @torch.no_grad()
    def descend(self, gradients: Sequence[Tensor | None], options: TrainOptions) -> None:
        """Take one step of every client, as ``Descent`` takes one of a single client.

        Parameters
        ----------
        gradients : Sequence[Tensor | None]
            Of the trained parameters, (clients, values); they are changed. Without one a parameter stays as it is.
        options : TrainOptions
            Learning rate, momentum and so on.
        """
        held = [number for number, gradient in enumerate(gradients) if gradient is not None]
        values, momentum, received = (
            [owns[number] for number in held] if owns else [] for owns in (self.values, self.momentum, self.received)
        )
        slopes = [gradient for gradient in gradients if gradient is not None]
        if received:
            torch._foreach_add_(slopes, torch._foreach_sub(values, received), alpha=options.proximal)
        if options.clip:
            norms = torch.stack([torch.linalg.vector_norm(slope, dim=1) for slope in slopes])
            norm = torch.linalg.vector_norm(norms, dim=0)[:, None]  # (clients, 1)
            torch._foreach_mul_(slopes, [(options.clip / (norm + 1e-6)).clamp(max=1.0)] * len(slopes))
        fused(values, slopes, momentum, options.learning_rate, None, options)


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
    """Clients side by side in the channels of one wide model; see ``heterofl_flwr.training.engines.wide``."""

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
