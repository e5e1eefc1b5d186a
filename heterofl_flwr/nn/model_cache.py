"""A cache of models: each is built once in a process and reused as if just built."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

import torch
from torch import Tensor, nn

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.randomness import kept_random_state

Build = Callable[[float], nn.Module]

_KEPT_MODELS = 16
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_MAPPINGS = (dict, OrderedDict)
_SEQUENCES = (tuple, list, set, frozenset, torch.Size)
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
        kept = models[rate] = _CachedModel(_built(build, rate))
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


class _CachedModel:
    """A model, and its state when it was built."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._places = self._places_now()
        self._snapshot = _Snapshot(model)

    @torch.no_grad()
    def renew(self) -> bool:
        """Set everything but the parameters back; False if the model is no longer the one that was built."""
        if not self._snapshot.same_as(_Snapshot(self.model)):
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

    models: OrderedDict[float, _CachedModel] = field(default_factory=OrderedDict)
    plans: dict[tuple[float, float], Plan] = field(default_factory=dict)


def _memory(build: Build) -> _Memory:
    """Return what this thread keeps of a function; it goes with the function, of which there may be one a message."""
    memories: WeakKeyDictionary[Build, _Memory] = _own.__dict__.setdefault("memories", WeakKeyDictionary())
    try:
        return memories.setdefault(build, _Memory())
    except TypeError:  # what cannot be a key, or be referred to weakly
        return _Memory()


class _Snapshot:
    """What a model consists of: layers, hooks and other attributes, but nothing that ``renew`` sets back.

    Objects are compared by their address in memory, so a snapshot keeps them alive: the address is not used again.
    """

    def __init__(self, model: nn.Module) -> None:
        self._set_back = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._seen: dict[int, int] = {}
        self._alive: list[object] = []
        try:
            self._found: object = self._of(model)
        except Exception:  # attributes may be of any kind, and raise anything
            self._found = None

    def same_as(self, other: "_Snapshot") -> bool:
        """Whether nothing has changed; False where that is unknown."""
        return self._found is not None and self._found == other._found

    def _of(self, value: Any) -> object:
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if (kind in _MAPPINGS or kind in _SEQUENCES) and not value:
            return kind  # most of what layers have are empty dicts of hooks
        if id(value) in self._seen:
            return "seen", self._seen[id(value)]
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            return value
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if isinstance(value, nn.Module):
            return kind, [(name, self._of(own)) for name, own in vars(value).items() if name != "training"]
        if kind in _MAPPINGS:
            return kind, [(self._of(key), self._of(own)) for key, own in value.items()]
        if kind in _SEQUENCES:
            return kind, list(map(self._of, value))
        if isinstance(value, ReferenceType):
            return ReferenceType, self._of(value())
        return self._of_object(value)

    def _of_tensor(self, tensor: Tensor) -> object:
        if id(tensor) not in self._set_back:
            return id(tensor), tensor._version
        graph = tensor.grad_fn is not None or (tensor.requires_grad and not isinstance(tensor, nn.Parameter))
        hooks = (tensor._backward_hooks, tensor._post_accumulate_grad_hooks, vars(tensor))
        return type(tensor), tuple(tensor.shape), tensor.stride(), tensor.dtype, graph, list(map(self._of, hooks))

    def _of_object(self, value: Any) -> object:
        """Return what a copy of an object would be made of; one that is its own copy never changes."""
        own_copy = getattr(value, "__deepcopy__", None)
        parts = value.__reduce_ex__(4) if own_copy is None or own_copy({}) is not value else ""
        if isinstance(parts, str):
            return id(value)
        return type(value), [self._of(list(part) if isinstance(part, Iterator) else part) for part in parts]
