"""Descriptions of models. Models with equal descriptions compute the same function."""

import logging
import random
from collections.abc import Hashable, Iterable, Mapping
from functools import lru_cache, partial, singledispatch
from itertools import chain
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_INTERNAL = vars(nn.Module()).keys()
_ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)

_LAYER_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


@lru_cache(maxsize=256)
def log_once(message: str) -> None:
    """Log a message only once in a process."""
    logger.info(message)


def find_hook(model: nn.Module) -> str | None:
    """Return a text that names a layer or parameter with a hook, or None."""
    for name, layer in model.named_modules():
        if any(getattr(layer, hooks, None) for hooks in _LAYER_HOOKS):
            return f"a hook watches layer {name or '(the model itself)'}"
    for name, parameter in model.named_parameters():
        if any(getattr(parameter, hooks, None) for hooks in _PARAMETER_HOOKS):
            return f"a hook watches parameter {name}"
    return None


def find_rnn_dropout(model: nn.Module) -> str | None:
    """Return a text that names a recurrent layer with dropout, or None."""
    # cuDNN has one random state for each GPU. Torch replaces it after a new seed, but a recorded step would still write
    # into the old one.
    for name, layer in model.named_modules():
        if isinstance(layer, nn.RNNBase) and layer.dropout:
            return f"layer {name or '(the model itself)'} is recurrent and has dropout"
    return None


class _Identity:
    """Wrapper that equals only wrappers of the same object."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


def describe(value: object) -> Hashable:
    """Return a description of a model or function.

    Models with equal descriptions compute the same results for equal parameters and buffers.
    """
    return _describe(value, {})


def _describe(value: object, seen: dict[int, tuple[int, object]]) -> Hashable:
    if isinstance(value, _ATOMS):
        return type(value), value  # with the type, because True == 1 == 1.0
    if id(value) in seen and not isinstance(value, tuple):
        return "seen", seen[id(value)][0]
    seen[id(value)] = len(seen), value  # the reference keeps the id from being reused
    tag, parts = _take_apart(value)
    return tag, tuple(_describe(part, seen) for part in parts)


@singledispatch
def _take_apart(value: object) -> tuple[Hashable, Iterable[object]]:
    """Return a value's tag and parts, for comparison: values are alike if their tags are equal and their parts alike.

    Parameters and Python classes are compared by identity, tensors by type, ``_form`` and contents. Hashable values
    whose type replaces the ``__eq__`` of ``object`` are compared by type and value. All other values are compared by
    type and attributes if they have a ``__dict__``, else by type and what ``copy`` would copy. Values without a
    ``__dict__`` that cannot be copied are compared by identity. The functions registered below replace these rules for
    their types.
    """
    kind: Any = type(value)
    if isinstance(value, nn.Parameter | type):
        return _Identity(value), ()
    if kind.__hash__ is not None and kind.__eq__ is not object.__eq__ and not isinstance(value, Tensor):
        return (kind, value), ()
    if hasattr(value, "__dict__") and not isinstance(value, Tensor):
        return kind, [vars(value)]
    try:  # contents, which may change in place
        if isinstance(value, Tensor):
            return (kind, _form(value)), [value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()]
        return kind, [value.__reduce_ex__(4)]
    except Exception:  # reading a value of a user's class may raise any error
        return _Identity(value), ()


@_take_apart.register
def _(value: nn.Module) -> tuple[Hashable, Iterable[object]]:
    tensors = *value._parameters.items(), *value._buffers.items()
    forms = tuple((name, tensor is not None and _form(tensor)) for name, tensor in tensors)
    attributes = {name: attribute for name, attribute in vars(value).items() if name not in _INTERNAL}
    return (type(value), value.training, forms), (attributes, value._modules)


def _form(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


@_take_apart.register(Mapping)
def _(value: Mapping[object, object]) -> tuple[Hashable, Iterable[object]]:
    return type(value), chain.from_iterable(value.items())


@_take_apart.register(random.Random)
@_take_apart.register(torch.Generator)
def _(value: Any) -> tuple[Hashable, Iterable[object]]:
    # Generators with equal states draw the same numbers.
    return type(value).__name__, [value.getstate() if isinstance(value, random.Random) else value.get_state().tolist()]


@_take_apart.register(list)
@_take_apart.register(tuple)
def _(value: Iterable[object]) -> tuple[Hashable, Iterable[object]]:
    return type(value), value


@_take_apart.register(set)
def _(value: set[object]) -> tuple[Hashable, Iterable[object]]:
    # Equal sets, as a set and its copy, can have their elements in different orders.
    by_value = frozenset((type(item), item) for item in value if type(item).__eq__ is not object.__eq__)
    return (type(value), by_value), [item for item in value if type(item).__eq__ is object.__eq__]


@_take_apart.register
def _(value: partial) -> tuple[Hashable, Iterable[object]]:  # type: ignore[type-arg]
    return partial, (value.func, value.args, value.keywords)


@_take_apart.register
def _(value: MethodType) -> tuple[Hashable, Iterable[object]]:
    return MethodType, (value.__func__, value.__self__)


@_take_apart.register
def _(value: FunctionType) -> tuple[Hashable, Iterable[object]]:
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    return (value.__module__, value.__code__), (cells, value.__defaults__, value.__kwdefaults__)
