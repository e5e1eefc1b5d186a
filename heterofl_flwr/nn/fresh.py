"""Models that are built once in a process and given out again as if just built."""

import io
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import torch
from torch import Tensor, nn

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.random_state import kept_random_state

Build = Callable[[float], nn.Module]

_KEPT_MODELS = 16
_own = threading.local()  # clients that run in threads of one process must not share a model


def fresh_model(build: Build, rate: float) -> nn.Module:
    """Return a model of a rate as if just built; the global random generators stay as they are.

    It is kept from earlier messages, as long as ``build`` itself exists, with buffers, gradients, modes and device set
    back. One with other layers, hooks or attributes than when it was built is built anew. Parameters keep their values,
    or have none: load some.
    """
    models = _memory(build).models
    kept = models.get(rate)
    if kept is None or not kept.renew():
        kept = models[rate] = _Kept(_built(build, rate))
    models.move_to_end(rate)
    while len(models) > _KEPT_MODELS:
        models.popitem(last=False)
    return kept.model


def plan_between(build: Build, top: float, rate: float) -> Plan:
    """Return the plan of a rate within the model of rate ``top``; each is worked out once."""
    plans = _memory(build).plans
    if (top, rate) not in plans:
        plans[top, rate] = Plan.of(_built(build, top), _built(build, rate))
    return plans[top, rate]


def _built(build: Build, rate: float) -> nn.Module:
    with kept_random_state():
        return build(rate)


class _Kept:
    """A model, and what it was like when it was built."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._places = self._places_now()
        self._look, self._alive = _look_of(model)

    @torch.no_grad()
    def renew(self) -> bool:
        """Set everything but the parameters back; False if the model is no longer the one that was built."""
        if self._look is None or _look_of(self.model)[0] != self._look:
            return False
        if any(tensor.device != self._device for tensor in self.model.parameters()):
            self.model.to_empty(device=self._device)
            self._places = self._places_now()
        if self._places_now() != self._places:
            return False  # its values lie in memory that somebody else may hold
        self.model.zero_grad(set_to_none=True)
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self._buffers[name])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        self.model.train()
        return True

    def _places_now(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())]


@dataclass(slots=True)
class _Memory:
    """What is kept of one function from a rate to a model."""

    models: OrderedDict[float, _Kept] = field(default_factory=OrderedDict)
    plans: dict[tuple[float, float], Plan] = field(default_factory=dict)


def _memory(build: Build) -> _Memory:
    """Return what this thread keeps of a function; it goes with the function, of which there may be one a message."""
    memories: WeakKeyDictionary[Build, _Memory] = _own.__dict__.setdefault("memories", WeakKeyDictionary())
    try:
        return memories.setdefault(build, _Memory())
    except TypeError:  # what cannot be a key, or be referred to weakly
        return _Memory()


def _look_of(model: nn.Module) -> tuple[bytes | None, list[object]]:
    """Return what a model consists of as bytes, all but what ``renew`` sets back; None if it cannot be written.

    With it come the objects that it tells apart by their place in memory; while they exist, no others are there.
    """
    file = io.BytesIO()
    writer = _Look(file, model)
    try:
        writer.dump(model)
    except Exception:  # attributes may be of any kind, and raise anything
        return None, []
    return file.getvalue(), writer.alive


class _Look(pickle.Pickler):
    """Writes what a model consists of: layers, hooks and other attributes, but no values that are set back."""

    def __init__(self, file: io.BytesIO, model: nn.Module) -> None:
        super().__init__(file)
        self.alive: list[object] = []
        self._set_back = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def reducer_override(self, value: Any) -> Any:
        """Say what is written in place of an object; nothing is ever read again."""
        if value is tuple:
            return NotImplemented
        if isinstance(value, nn.Module):
            # Without its mode, which is set back; and its empty dicts of hooks are many, and slow to write.
            attributes = {
                name: None if type(own) is OrderedDict and not own else own
                for name, own in vars(value).items()
                if name != "training"
            }
            return tuple, (self._itself(type(value)),), attributes
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            return tuple, (self._itself(value),)
        if isinstance(value, ReferenceType):
            return tuple, (value(),)
        return NotImplemented

    def _tensor(self, tensor: Tensor) -> object:
        if id(tensor) not in self._set_back:
            return tuple, (self._itself(tensor), tensor._version)
        graph = tensor.grad_fn is not None or (tensor.requires_grad and not isinstance(tensor, nn.Parameter))
        form = (type(tensor), tuple(tensor.shape), tensor.stride(), tensor.dtype, graph)
        hooks = (tensor._backward_hooks, tensor._post_accumulate_grad_hooks)
        return tuple, form, (vars(tensor), hooks)

    def _itself(self, value: object) -> int:
        self.alive.append(value)
        return id(value)
