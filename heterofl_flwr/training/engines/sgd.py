"""One step down the gradient: backward, the pull of FedProx, clipping, and SGD with momentum."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from heterofl_flwr.training.options import TrainOptions

FUSED_DEVICES = ("cpu", "cuda")
"""Where torch's fused SGD divides by the scale that it is given: on MPS it leaves the scale out without a word."""


class Descent:
    """SGD for one client in one round; momentum starts at zero.

    Clipping costs no pass over the gradients: torch's fused SGD divides by a scale that it is given. Its kernel is
    called as it is, because the class ``torch.optim.SGD`` loads torch's compiler, which costs each process two seconds
    and 150 MB. What the kernel cannot take is updated by several smaller ones.

    Parameters
    ----------
    parameters : Iterable[nn.Parameter]
        What is trained; those that need no gradient stay as they are.
    options : TrainOptions
        Learning rate, momentum and so on.
    learning_rate : Tensor | None
        A float32 number on the parameters' device, read anew in each step; None for that of the options.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], options: TrainOptions, learning_rate: Tensor | None = None
    ) -> None:
        self._options = options
        self._learning_rate = options.learning_rate if learning_rate is None else learning_rate
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._strides = [parameter.stride() for parameter in self._parameters]
        self._values = [_dense(parameter.detach()) for parameter in self._parameters]
        # The kernel takes no buffers where there is no momentum.
        self._momentum = [torch.zeros_like(value) for value in self._values] if options.momentum else []
        self._received = [value.clone() for value in self._values] if options.proximal else []
        self._update = fused if all(map(_fits_the_kernel, self._values)) else _by_parts

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew, in the same tensors, from the parameters as they are now."""
        if self._momentum:
            torch._foreach_zero_(self._momentum)
        if self._received:
            torch._foreach_copy_(self._received, self._values)

    def take(self, loss: Tensor) -> None:
        """Take one step."""
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            self._descend()

    @torch.no_grad()
    def follow(self, gradients: Iterable[Tensor]) -> None:
        """Take one step along gradients that are given, one for each parameter that is trained."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._descend()

    def _descend(self) -> None:
        gradients_at = {
            number: self._in_layout(number, gradient)
            for number, parameter in enumerate(self._parameters)
            if (gradient := parameter.grad) is not None
        }
        if not gradients_at:
            return
        values, gradients = [self._values[number] for number in gradients_at], list(gradients_at.values())
        if self._received:
            pull = torch._foreach_sub(values, [self._received[number] for number in gradients_at])
            torch._foreach_add_(gradients, pull, alpha=self._options.proximal)
        momentum = [self._momentum[number] for number in gradients_at] if self._momentum else []
        self._update(values, gradients, momentum, self._learning_rate, self._scale(gradients), self._options)

    def _in_layout(self, number: int, gradient: Tensor) -> Tensor:
        """Return a gradient in the layout of its parameter, from which a hook may have changed it."""
        if gradient.stride() != self._strides[number]:
            gradient = torch.empty_like(self._parameters[number]).copy_(gradient)
        return _dense(gradient)

    def _scale(self, gradients: list[Tensor]) -> Tensor | None:
        """Return by what the gradients are divided, as ``clip_grad_norm_`` multiplies them; None without clipping."""
        if not self._options.clip:
            return None
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        scale: Tensor = ((norm + 1e-6) / self._options.clip).clamp(min=1.0)
        return scale


def _dense(tensor: Tensor) -> Tensor:
    """Return the tensor itself or, where it is channels last, the view of it in which it is contiguous.

    The fused kernel copies what is not contiguous, and on a CPU it pairs values by their place in memory.
    """
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1)
    return tensor


def _fits_the_kernel(value: Tensor) -> bool:
    """Return whether the fused kernel can update it: in float32, as the scale is, and without gaps in memory."""
    without_gaps = torch.empty_like(value).stride() == value.stride()
    return value.device.type in FUSED_DEVICES and value.dtype == torch.float32 and without_gaps


def fused(
    values: list[Tensor],
    gradients: list[Tensor],
    momentum: list[Tensor],
    learning_rate: float | Tensor,
    scale: Tensor | None,
    options: TrainOptions,
) -> None:
    """Take a step of SGD by torch's fused kernel; without momentum there are no buffers for it."""
    torch._fused_sgd_(
        values,
        gradients,
        momentum,
        lr=learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        grad_scale=scale,
    )


def _by_parts(
    values: list[Tensor],
    gradients: list[Tensor],
    momentum: list[Tensor],
    learning_rate: float | Tensor,
    scale: Tensor | None,
    options: TrainOptions,
) -> None:
    """Do what the fused kernel does."""
    if scale is not None:
        torch._foreach_div_(gradients, scale)
    torch._foreach_add_(gradients, values, alpha=options.weight_decay)
    if momentum:
        torch._foreach_mul_(momentum, options.momentum)
        torch._foreach_add_(momentum, gradients)
    torch._foreach_sub_(values, torch._foreach_mul(momentum or gradients, learning_rate))
