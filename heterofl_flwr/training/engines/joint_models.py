"""Joint models: one wide model computes the models of several clients at once."""

import copy
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from heterofl_flwr.nn.execution import named_tensors
from heterofl_flwr.nn.memory_format import suits_channels_last
from heterofl_flwr.training.device import random_states
from heterofl_flwr.training.engines.structure import describe
from heterofl_flwr.training.engines.wide_layers import IncompatibleError, wide_twin

TOLERANCE = 1e-9
"""Largest allowed difference between results of joint and separate models, relative to a norm (see ``_compare``)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Name, shape and memory format of a parameter whose entries are stored as one row for each client."""

    name: str
    shape: torch.Size
    trained: bool
    channels_last: bool

    def rows(self, tensor: Tensor, clients: int) -> Tensor:
        """Return ``tensor``, a parameter or gradient of ``clients`` clients, in the shape (clients, entries)."""
        return (tensor.permute(0, 2, 3, 1) if self.channels_last else tensor).reshape(clients, -1)

    def shaped(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Return a view of ``rows`` in the shape ``shape``; the inverse of the method ``rows``."""
        if not self.channels_last:
            return rows.view(tuple(shape))
        number, channels, height, width = shape
        return rows.view(number, height, width, channels).permute(0, 3, 1, 2)


def build_layouts(models: Sequence[nn.Module]) -> list[Layout]:
    """Return the layouts of the models' parameters, trained parameters first.

    Raise ``IncompatibleError`` if the results of ``_forms`` or the values of buffers differ between models.
    """
    model, *rest = models
    for local in rest:
        if _forms(local) != _forms(model) or not all(map(torch.equal, model.buffers(), local.buffers())):
            raise IncompatibleError("the clients' models differ in their parameters or buffers")
    fit = suits_channels_last(model)  # on a CPU, wide convolutions are faster channels last
    images = {
        id(layer.weight)
        for layer in model.modules()
        if fit and isinstance(layer, nn.Conv2d) and layer.weight.device.type == "cpu"
    }
    layouts = [
        Layout(name, parameter.shape, parameter.requires_grad, id(parameter) in images)
        for name, parameter in model.named_parameters()
    ]
    return sorted(layouts, key=lambda layout: not layout.trained)


def _forms(model: nn.Module) -> list[tuple[object, ...]]:
    """Return name, shape, dtype, device and ``requires_grad`` of each parameter and buffer of a model."""
    tensors = named_tensors(model).items()
    return [(name, value.shape, value.dtype, value.device, value.requires_grad) for name, value in tensors]


class Joint:
    """Wide model of several clients. ``place`` sets their parameters."""

    def __init__(self, model: nn.Module, layouts: Sequence[Layout], clients: int, kind: Hashable = None) -> None:
        self.layouts, self._kind, self._clients, self._twin = layouts, kind, clients, wide_twin(model, clients)
        parameters = dict(self._twin.named_parameters())
        if parameters.keys() != {layout.name for layout in layouts}:
            raise IncompatibleError("layers share parameters")  # their wide copies would not share them
        self._parameters = [parameters[layout.name] for layout in layouts]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (batch, clients, classes) of inputs (batch, clients * channels, ...)."""
        logits: Tensor = self._twin(inputs)
        by_client: Tensor = logits.unflatten(1, (self._clients, -1))
        return by_client

    def place(self, values: Sequence[Tensor]) -> None:
        """Set the parameters of all clients to ``values``, a tensor of shape (clients, entries) for each layout.

        The parameters are views of these tensors: in-place changes of ``values`` change the parameters too.
        """
        for layout, parameter, rows in zip(self.layouts, self._parameters, values, strict=True):
            parameter.data = layout.shaped(rows, parameter.shape)

    def release(self) -> None:
        """Free the parameters and gradients. Call ``place`` before the next use."""
        for parameter in self._parameters:
            parameter.grad, parameter.data = None, parameter.data.new_empty(()).expand_as(parameter)

    def give_back(self) -> None:
        """Keep the joint model for other clients with such models (``take_verified``)."""
        self.release()
        if len(_FREE) == MOST_FREE:
            _FREE.clear()
        _FREE[self._kind] = self

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """Run the backward pass; return the gradient of each trained parameter, of shape (clients, entries).

        A gradient is None if the loss does not depend on the parameter.
        """
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        return [
            None if parameter.grad is None else layout.rows(parameter.grad, self._clients)
            for layout, parameter in zip(self.layouts, self._parameters, strict=True)
            if layout.trained
        ]


_FREE: dict[Hashable, Joint] = {}
"""Joint models that were given back, by kind. A kind describes the models, their number and their inputs."""

MOST_FREE = 64
"""Largest number of joint models in ``_FREE``. They have no parameters there, so they need little memory."""


def take_verified(
    models: Sequence[nn.Module], layouts: Sequence[Layout], values: Sequence[Tensor], inputs: Sequence[Tensor]
) -> Joint:
    """Return the joint model of clients: one that was given back, or a new one.

    The results of a new one are first compared with those of the first and last client's model. ``inputs`` has one
    batch for each client, all of the same shape. Raise ``IncompatibleError`` if a layer has no wide twin or shares
    parameters, if logits or gradients differ, or if a model changes a buffer or an attribute, or draws random numbers.
    """
    form = len(models), inputs[0].shape, inputs[0].dtype
    kind = describe((models[0], models[-1], *models[0].buffers(), *layouts, *form))
    if (joint := _FREE.pop(kind, None)) is not None:  # in use, it is not in ``_FREE``: another thread makes its own
        return joint
    # In float32, rounding can move a value across the kink of a ReLU and change gradients by percents.
    exact = {client: copy.deepcopy(models[client]).double() for client in {0, len(models) - 1}}
    exact_inputs = [batch.double() if batch.is_floating_point() else batch for batch in inputs]
    _verify(Joint(exact[0], layouts, len(models)), exact, [rows.double() for rows in values], exact_inputs)
    return Joint(models[0], layouts, len(models), kind)


def _verify(joint: Joint, models: Mapping[int, nn.Module], values: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    joint.place(values)
    together = joint.forward(torch.cat(list(inputs), 1))
    gradients = joint.gradients(_probe(together))
    for client, model in models.items():
        parameters = {
            layout.name: layout.shaped(rows[client], layout.shape).detach().requires_grad_(layout.trained)
            for layout, rows in zip(joint.layouts, values, strict=True)
        }
        logits = _call_alone(model, parameters, inputs[client])
        _compare("logits", [together[:, client]], [logits])
        trained = [value for value in parameters.values() if value.requires_grad]
        alone = torch.autograd.grad(_probe(logits[:, None]), trained, allow_unused=True)
        _compare(
            "gradients",
            [gradient[client] for gradient in gradients if gradient is not None],
            [
                layout.rows(gradient, 1)[0]
                for layout, gradient in zip(joint.layouts, alone, strict=False)
                if gradient is not None
            ],
        )


def _probe(logits: Tensor) -> Tensor:
    """Return a weighted sum of logits (batch, clients, ...), with the same weights for all clients."""
    client = logits[:, :1].detach()  # (batch, 1, ...)
    return (logits * torch.arange(client.numel(), device=client.device).cos().view_as(client)).sum()


def _call_alone(model: nn.Module, values: dict[str, Tensor], inputs: Tensor) -> Tensor:
    # Not passed to functional_call, which would undo that a forward pass replaces a buffer.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = describe(model), random_states(inputs.device)
    # With tie_weights, torch would not restore the parameters of a layer that has two names.
    logits: Tensor = functional_call(model, values, (inputs,), tie_weights=False)
    changed = [name for name, buffer in model.named_buffers() if not torch.equal(buffers[name], buffer)]
    if changed:
        raise IncompatibleError(f"training changes the buffer {changed[0]}")
    if before != (describe(model), random_states(inputs.device)):
        raise IncompatibleError("its forward pass draws random numbers or changes attributes of the model")
    return logits


def _compare(what: str, together: Sequence[Tensor], alone: Sequence[Tensor]) -> None:
    """Raise ``IncompatibleError`` if a tensor of ``together`` differs too much from its counterpart in ``alone``.

    The norm of the difference may be at most ``TOLERANCE`` times the larger of two numbers: the norm of the
    counterpart, and a tenth of the largest norm of a tensor in ``alone``.
    """
    norms = [tensor.norm() for tensor in alone]
    least = torch.stack(norms).max() / 10
    for joint, single, norm in zip(together, alone, norms, strict=True):
        if not (joint - single).norm() <= TOLERANCE * norm.maximum(least):  # NaN fails this test
            raise IncompatibleError(f"together, {what} have other values")
