"""A cache of models on a GPU: each is built once in a process, as the CUDA graph of its steps is recorded once."""

import io
import pickle
import sys
import threading
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import torch
from torch import Tensor, nn

from heterofl_flwr.core.exchange import exchanged_parameters
from heterofl_flwr.nn.build import new_model
from heterofl_flwr.nn.execution import device_of
from heterofl_flwr.nn.models import Build

Models = OrderedDict[float, "_CachedModel"]
"""The models of a function by their rates."""

_KEPT_MODELS = 16
_own = threading.local()  # clients that run in threads of one process must not share a model


def kept_model(build: Build, rate: float) -> nn.Module:
    """Return a model of a rate as if just built; the global random generators stay as they are.

    It is kept from earlier messages, as long as ``build`` itself exists, with buffers, gradients, modes and device set
    back. One with other layers, hooks or attributes than when it was built is built anew, and so is one that somebody
    still holds. Parameters that are exchanged keep their values, or have none: load some.
    """
    models = _find_models(build)
    kept = models.get(rate)
    if kept is None or kept.references() > kept.idle or not kept.renew():
        kept = models[rate] = _CachedModel(new_model(build, rate))
        kept.idle = kept.references()  # only now, as nothing but the cache holds it
    models.move_to_end(rate)
    while len(models) > _KEPT_MODELS:
        models.popitem(last=False)
    return kept.model


def _find_models(build: Build) -> Models:
    """Return this thread's models of a function; they go with it."""
    models: WeakKeyDictionary[Build, Models] = _own.__dict__.setdefault("models", WeakKeyDictionary())
    try:
        return models.setdefault(build, OrderedDict())
    except TypeError:  # what cannot be a key, or be referred to weakly
        return OrderedDict()


class _CachedModel:
    """A model, and its state when it was built."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._device = device_of(model)
        self._places = self._find_places()
        self._contents = _Contents(model)
        self.idle = 0

    def references(self) -> int:
        """Return how many references there are to the model, its own among them."""
        return sys.getrefcount(self.model)

    @torch.no_grad()
    def renew(self) -> bool:
        """Set everything but the parameters back; False if the model is no longer the one that was built."""
        if self._contents.found is None or self._contents.found != _Contents(self.model).found:
            return False
        exchanged = exchanged_parameters(self.model)
        if any(self._trainable[name] for name in self._trainable.keys() - exchanged.keys()):
            return False  # they have the values of the client before
        if any(tensor.device != self._device for tensor in self.model.parameters()):
            if len(exchanged) < len(self._trainable):
                return False  # nobody sends the values of the others
            self.model.to_empty(device=self._device)
            self._places = self._find_places()
        if self._find_places() != self._places:
            return False  # its values lie in memory that somebody else may hold
        self.model.zero_grad(set_to_none=True)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self._buffers[name])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        self.model.train()
        return True

    def _find_places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())]


class _Contents(pickle.Pickler):
    """What a model consists of: layers, hooks and other attributes, but nothing that ``renew`` sets back.

    It is what pickle would write, but with functions, types and tensors by their address in memory. They are kept
    alive, so that the address is not used again.
    """

    def __init__(self, model: nn.Module) -> None:
        file = io.BytesIO()
        super().__init__(file, protocol=5)
        self._own = {id(tensor): number for number, tensor in enumerate((*model.parameters(), *model.buffers()))}
        self._alive: list[object] = []
        try:
            self.dump(model)
            self.found: bytes | None = file.getvalue()
        except Exception:  # attributes may be of any kind, and raise anything
            self.found = None

    def persistent_id(self, obj: Any) -> object:
        """Return what stands for a tensor, a function, a type or a weak reference; None for everything else."""
        value: Any = obj() if isinstance(obj, ReferenceType) else obj
        if id(value) in self._own:
            graph = value.grad_fn is not None or (value.requires_grad and not isinstance(value, nn.Parameter))
            layout = type(value), tuple(value.shape), value.stride(), value.dtype, graph
            hooks = value._backward_hooks, value._post_accumulate_grad_hooks, vars(value)
            return self._own[id(value)], layout, hooks
        if value is obj and not isinstance(value, Tensor | type | FunctionType | BuiltinFunctionType):
            return None
        self._alive.append(value)
        return id(value), value._version if isinstance(value, Tensor) else None

    def reducer_override(self, obj: Any) -> Any:
        """Leave out the mode of a layer; take what is its own copy, and so never changes, as it is."""
        if isinstance(obj, nn.Module):
            return type(obj), (), {name: own for name, own in vars(obj).items() if name != "training"}
        own_copy = getattr(obj, "__deepcopy__", None)
        if own_copy is not None and own_copy({}) is obj:
            return id, (id(obj),)
        return NotImplemented
