"""Models that are built once in a process and given out again as if just built."""

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

Build = Callable[[float], nn.Module]

_KEPT_MODELS = 16
_own = threading.local()  # clients that run in threads of one process must not share a model


def fresh_model(build: Build, rate: float) -> nn.Module:
    """Return a model of a rate as if just built.

    It is kept from earlier messages with buffers, gradients, modes and device set back; one whose tensors have changed
    in number, shape or type is built anew. Parameters keep their values, or have none: load some.
    """
    models: OrderedDict[tuple[Build, float], _Kept] = _own.__dict__.setdefault("models", OrderedDict())
    key = (build, rate)
    kept = models.get(key)
    if kept is None or not kept.renew():
        kept = models[key] = _Kept(build(rate))
    models.move_to_end(key)
    while len(models) > _KEPT_MODELS:
        models.popitem(last=False)
    return kept.model


class _Kept:
    """A model, and what it was like when it was built."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._form = self._form_now()

    @torch.no_grad()
    def renew(self) -> bool:
        """Set everything but the parameters back; False if the model is no longer the one that was built."""
        if self._form_now() != self._form:
            return False
        self.model.zero_grad(set_to_none=True)
        if any(parameter.device != self._device for parameter in self.model.parameters()):
            self.model.to_empty(device=self._device)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self._buffers[name])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        self.model.train()
        return True

    def _form_now(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        tensors = [*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers()]
        return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors}
