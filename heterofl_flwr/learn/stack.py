"""The parameters of several clients, one row for each, and one step of SGD for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heterofl_flwr.learn.descent import fused
from heterofl_flwr.learn.options import TrainOptions
from heterofl_flwr.learn.unfit import UnfitError


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
