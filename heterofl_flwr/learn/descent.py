"""One step down the gradient: backward, the pull of FedProx, clipping, and SGD with momentum."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from heterofl_flwr.learn.options import TrainOptions


class Descent:
    """SGD for one client in one round; momentum starts at zero.

    Clipping costs no pass over the gradients: torch's fused SGD divides by a scale that it is given. Its kernel is
    called as it is, because the class ``torch.optim.SGD`` loads torch's compiler, which costs each process two seconds
    and 150 MB.

    Parameters
    ----------
    parameters : Iterable[nn.Parameter]
        What is trained; those that need no gradient stay as they are.
    options : TrainOptions
        Learning rate, momentum and so on.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], options: TrainOptions) -> None:
        self._options = options
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._values = [_dense(parameter.detach()) for parameter in self._parameters]
        # The kernel takes no buffers where there is no momentum.
        self._momentum = [torch.zeros_like(value) for value in self._values] if options.momentum else []
        self._received = [value.clone() for value in self._values] if options.proximal else []

    def take(self, loss: Tensor) -> None:
        """Take one step."""
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        with torch.no_grad():
            self._descend()

    def _descend(self) -> None:
        held = [number for number, parameter in enumerate(self._parameters) if parameter.grad is not None]
        values = [self._values[number] for number in held]
        gradients = [_dense(gradient) for parameter in self._parameters if (gradient := parameter.grad) is not None]
        if self._received:
            pull = torch._foreach_sub(values, [self._received[number] for number in held])
            torch._foreach_add_(gradients, pull, alpha=self._options.proximal)
        momentum = [self._momentum[number] for number in held] if self._momentum else []
        _fused(values, gradients, momentum, self._scale(gradients), self._options)

    def _scale(self, gradients: list[Tensor]) -> Tensor | None:
        """Return by what the gradients are divided, as ``clip_grad_norm_`` multiplies them; None without clipping."""
        if not self._options.clip or not gradients:
            return None
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        scale: Tensor = ((norm + 1e-6) / self._options.clip).clamp(min=1.0)
        return scale


def _dense(tensor: Tensor) -> Tensor:
    """Return the tensor itself or, where it is channels last, the view of it in which it is contiguous.

    The fused kernel copies what is not contiguous, and on a CPU it pairs values by their place in memory.
    """
    if tensor.dim() == 4 and not tensor.is_contiguous():
        return tensor.permute(0, 2, 3, 1)
    return tensor


def _fused(
    values: list[Tensor], gradients: list[Tensor], momentum: list[Tensor], scale: Tensor | None, options: TrainOptions
) -> None:
    if not values:
        return
    torch._fused_sgd_(
        values,
        gradients,
        momentum,
        lr=options.learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        grad_scale=scale,
    )
