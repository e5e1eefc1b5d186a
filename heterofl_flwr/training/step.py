"""A training step: forward pass, masked loss and SGD."""

import copy
from collections.abc import Iterable, Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

from heterofl_flwr.nn.exits import Exits
from heterofl_flwr.nn.inner_widths import Nested
from heterofl_flwr.nn.loss import Fill, class_mask, flatten_positions, mask_logits, masked_cross_entropy
from heterofl_flwr.nn.penalty import AlignedQuadratic
from heterofl_flwr.training.options import JointLoss, TrainOptions

FUSED_DEVICES = ("cpu", "cuda")
"""Devices on which torch's fused SGD divides gradients by ``grad_scale``. MPS silently ignores ``grad_scale``."""


class Masking:
    """Function that replaces the logits of absent classes."""

    def __init__(self, classes: Sequence[int] | Tensor | None, fill: Fill) -> None:
        self._classes, self._fill = classes, fill
        self._mask: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return logits in which the logits of absent classes are replaced."""
        if self._mask is None and self._classes is not None:
            self._mask = class_mask(self._classes, logits.shape[1]).to(logits.device)
        return mask_logits(logits, self._mask, self._fill)

    def renew(self, classes: Sequence[int] | Tensor | None) -> None:
        """Replace the classes by another client's classes. The mask keeps its memory, for CUDA graphs.

        The new classes must be None if the previous classes were None, and only then.
        """
        self._classes = classes
        if self._mask is not None and classes is not None:
            self._mask.copy_(class_mask(classes, len(self._mask)))


def compute_loss(
    model: nn.Module, inputs: Tensor, targets: Tensor, masking: Masking, joint_loss: JointLoss | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean loss of a batch, and a boolean tensor, True for correct predictions.

    With ``joint_loss``, the model has several outputs; the last output gives the predictions.
    """
    outputs = [model(inputs)] if joint_loss is None else cast("Exits | Nested", model).all_logits(inputs)
    outputs, targets = flatten_positions([output.float() for output in outputs], targets)
    logits = list(map(masking, outputs))
    loss = masked_cross_entropy(logits[-1], targets) if joint_loss is None else joint_loss(logits, targets)
    return loss, logits[-1].detach().argmax(1) == targets


class SGD:
    """SGD with momentum, weight decay, quadratic penalties and gradient clipping.

    It calls torch's kernels without importing ``torch.optim.SGD``. The import would load torch's compiler, which takes
    two seconds and 150 MB.

    Only the first ``trained`` of ``values`` are trained, by default all. ``quadratic`` has tensors only for the
    trained values. With ``by_row``, row i of each value belongs to client i, and the gradients of each client are
    clipped separately.
    """

    def __init__(
        self,
        values: Iterable[Tensor],
        options: TrainOptions,
        *,
        trained: int | None = None,
        by_row: bool = False,
        quadratic: AlignedQuadratic | None = None,
    ) -> None:
        self.values, self._options, self._by_row = list(values), options, by_row
        self.learning_rate: float | Tensor = options.learning_rate
        # Without momentum, the kernel expects no buffers.
        self.momentum = [torch.zeros_like(value) for value in self.values[:trained]] if options.momentum else []
        self.received = [value.clone() for value in self.values[:trained]] if options.proximal else []
        self._strength, centers, directions = quadratic or AlignedQuadratic(0.0, (), ())
        self.centers, self.directions = list(centers), list(directions)
        self.fused = by_row or all(map(_fits_the_kernel, self.values))

    def select(self, rows: Tensor) -> Self:
        """Return an optimiser for the clients ``rows``, with copies of their values and state."""
        part = copy.copy(self)
        part.values, part.momentum, part.received, part.centers, part.directions = (
            [tensor[rows] for tensor in tensors]
            for tensors in (self.values, self.momentum, self.received, self.centers, self.directions)
        )
        return part

    def write(self, rows: Tensor, part: "SGD") -> None:
        """Copy values and momentum of ``part``, the result of ``select(rows)``, back into this optimiser."""
        for tensor, new in zip(self.values + self.momentum, part.values + part.momentum, strict=True):
            tensor[rows] = new

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Update each value whose gradient is not None. The gradients may be overwritten."""
        slopes = [gradient for gradient in gradients if gradient is not None]
        if not slopes:
            return
        values, momentum, received, centers, directions = (
            [tensor for tensor, gradient in zip(tensors, gradients, strict=False) if gradient is not None]
            for tensors in (self.values, self.momentum, self.received, self.centers, self.directions)
        )
        if received:
            torch._foreach_add_(slopes, torch._foreach_sub(values, received), alpha=self._options.proximal)
        if centers:
            torch._foreach_add_(slopes, torch._foreach_sub(values, centers), alpha=self._strength)
        if directions:
            torch._foreach_add_(slopes, directions)
        scale = None
        if self._options.clip and self._by_row:
            norms = torch.stack([torch.linalg.vector_norm(slope, dim=1) for slope in slopes])
            norm = torch.linalg.vector_norm(norms, dim=0)[:, None]  # (clients, 1)
            torch._foreach_mul_(slopes, [(self._options.clip / (norm + 1e-6)).clamp(max=1.0)] * len(slopes))
        elif self._options.clip:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(slopes)))
            scale = ((norm + 1e-6) / self._options.clip).clamp(min=1.0)
        self._update(values, slopes, momentum, scale)

    def _update(self, values: list[Tensor], slopes: list[Tensor], momentum: list[Tensor], scale: Tensor | None) -> None:
        options = self._options
        if self.fused:
            torch._fused_sgd_(
                values,
                slopes,
                momentum,
                lr=self.learning_rate,
                momentum=options.momentum,
                weight_decay=options.weight_decay,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                grad_scale=scale,
            )
            return
        if scale is not None:
            torch._foreach_div_(slopes, scale)
        torch._foreach_add_(slopes, values, alpha=options.weight_decay)
        if momentum:
            torch._foreach_mul_(momentum, options.momentum)
            torch._foreach_add_(momentum, slopes)
        torch._foreach_sub_(values, torch._foreach_mul(momentum or slopes, self.learning_rate))


class ParameterSGD(SGD):
    """SGD on the trainable parameters of a model."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], options: TrainOptions, quadratic: AlignedQuadratic | None = None
    ) -> None:
        self._all = list(parameters)
        self.parameters = [parameter for parameter in self._all if parameter.requires_grad]
        for parameter in self.parameters:
            parameter.grad = None
        self._strides = [parameter.stride() for parameter in self.parameters]
        dense = [_dense(parameter.detach()) for parameter in self.parameters]
        super().__init__(dense, options, quadratic=self._trained(quadratic))

    def _trained(self, quadratic: AlignedQuadratic | None) -> AlignedQuadratic | None:
        def select(tensors: Sequence[Tensor]) -> list[Tensor]:
            pairs = zip(self._all, tensors, strict=bool(tensors))
            return [_dense(torch.empty_like(like).copy_(tensor)) for like, tensor in pairs if like.requires_grad]

        if quadratic is None:
            return None
        return AlignedQuadratic(quadratic.strength, select(quadratic.centers), select(quadratic.directions))

    @torch.no_grad()
    def restart(self, learning_rate: float, quadratic: AlignedQuadratic | None) -> None:
        """Reset the optimiser in place, to train from the current values of the parameters with a new learning rate.

        ``quadratic`` replaces the previous penalty. It must have the previous one's strength, number of centers and
        number of directions, and must be None if and only if there was no previous penalty.
        """
        _, centers, directions = self._trained(quadratic) or AlignedQuadratic(0.0, (), ())
        for momentum in self.momentum:
            momentum.zero_()
        pairs = (self.received, self.values), (self.centers, centers), (self.directions, directions)
        for memory, values in pairs:
            for target, value in zip(memory, values, strict=bool(memory)):
                target.copy_(value)
        if isinstance(self.learning_rate, Tensor):
            self.learning_rate.fill_(learning_rate)
        else:
            self.learning_rate = learning_rate

    def minimise(self, loss: Tensor) -> None:
        """Run the backward pass of a loss, then one step."""
        loss.backward()
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        self.step(gradients)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Update the parameters by one step, except parameters whose gradient is None."""
        dense: list[Tensor | None] = []
        for parameter, stride, gradient in zip(self.parameters, self._strides, gradients, strict=True):
            if gradient is not None and gradient.is_sparse:  # of an embedding; weight decay needs all rows
                gradient = gradient.to_dense()
            # A gradient has the layout of its parameter, unless a hook has changed it.
            if gradient is not None and gradient.stride() != stride:
                gradient = torch.empty_like(parameter).copy_(gradient)
            dense.append(None if gradient is None else _dense(gradient))
        super().step(dense)


def _dense(tensor: Tensor) -> Tensor:
    """Return a view of a channels-last tensor with its axes in the order of memory; return other tensors unchanged.

    The fused kernel copies tensors whose axes have another order.
    """
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1)
    return tensor


def _fits_the_kernel(value: Tensor) -> bool:
    without_gaps = torch.empty_like(value).stride() == value.stride()
    return value.device.type in FUSED_DEVICES and value.dtype == torch.float32 and without_gaps
