"""A copy of a model for tracing, without the values of tensors."""

import copy
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils._pytree import tree_map

from heterofl_flwr.common.errors import UnsupportedLayerError, first_line
from heterofl_flwr.core.randomness import kept_random_state
from heterofl_flwr.elastic_models.lengths import Length, Source, Trace
from heterofl_flwr.elastic_models.rules import STAND_INS, Alike, Call
from heterofl_flwr.nn.execution import call, named_tensors

_LARGEST_WIDTH = 1 << 20


class Number(NamedTuple):
    """Location of an integer: the attribute ``name`` of a layer, or an item of this attribute.

    ``layer`` is the layer's name. ``place`` is the item's index, or None if the attribute itself is the integer.
    """

    layer: str
    name: str
    place: int | None


def find_containers(model: nn.Module) -> dict[str, dict[Any, Any] | list[Any]]:
    """Return the attribute dictionaries of all layers, and all dicts and lists in them, by name."""
    containers = {f"{name}.": vars(layer) for name, layer in model.named_modules()}
    names, seen = list(containers), set(map(id, containers.values()))
    for name in names:  # the loop appends to it
        for key, value in entries(containers[name]).items():
            if isinstance(value, dict | list) and id(value) not in seen:
                seen.add(id(value))
                names.append(f"{name}{key}.")
                containers[names[-1]] = value
    return containers


def entries(container: dict[Any, Any] | list[Any]) -> dict[Any, Any]:
    """Return the values of a dict by key, or of a list by index."""
    return container if isinstance(container, dict) else dict(enumerate(container))


def other_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return tensors that layers store outside their parameters and buffers, by name."""
    registered = set(map(id, named_tensors(model).values()))
    values = {
        f"{name}{key}": value
        for name, container in find_containers(model).items()
        for key, value in entries(container).items()
    }
    return {name: value for name, value in values.items() if isinstance(value, Tensor) and id(value) not in registered}


def copy_with(model: nn.Module, new: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Return a copy of a model in which ``new(name, tensor)`` replaces each tensor.

    Tensors that are shared in the model are shared in the copy.
    """
    memo: dict[int, object] = {}
    for name, tensor in (named_tensors(model) | other_tensors(model)).items():
        if id(tensor) not in memo:
            values = new(name, tensor.detach())
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(values, tensor.requires_grad) if is_parameter else values
    try:
        return copy.deepcopy(model, memo)
    except TypeError as error:
        raise UnsupportedLayerError(
            f"the model cannot be copied: {first_line(error)}. Give it as it was built, without generators"
        ) from error


class Skeleton:
    """A copy of a model on torch's meta device, for tracing.

    While the copy runs, ``torch.jit.is_tracing()`` returns ``says_tracing``. With True, some models skip checks of
    values; others compute lengths as tensors, which cannot be traced.
    """

    def __init__(self, model: nn.Module, says_tracing: bool) -> None:
        self.says_tracing = says_tracing
        self._originals = {id(tensor): name for name, tensor in named_tensors(model).items()}
        self.model = copy_with(model, lambda name, tensor: torch.empty_like(tensor, device="meta"))
        self._names = {id(tensor): name for name, tensor in reversed(named_tensors(self.model).items())}
        self._path: list[str] = []
        self._layers = dict(self.model.named_modules())
        for name, layer in self._layers.items():
            replacement = STAND_INS.find(layer)
            if replacement is not None:
                layer.__dict__["forward"] = partial(replacement, layer)
            layer.register_forward_pre_hook(lambda *arguments, name=name: self._path.append(name))
            if isinstance(layer, _BatchNorm) and not named_tensors(layer):
                layer.register_forward_pre_hook(_compare_width)
            layer.register_forward_hook(self._leave)

    def _leave(self, *arguments: object) -> None:
        self._path.pop()

    @property
    def at_work(self) -> tuple[str, nn.Module]:
        """Name and module of the layer that is running."""
        name = (self._path or [""])[-1]
        return name, self._layers[name]

    @property
    def place(self) -> str:
        """Name and type of the layer that is running, for error messages."""
        name, layer = self.at_work
        return f"layer {name or '(the model itself)'} of type {type(layer).__name__}"

    def names_in(self, called: Call) -> list[str]:
        """Return the names of the parameters and buffers that an operator call reads."""
        return [self._names[id(tensor)] for tensor in called.inputs if id(tensor) in self._names]

    def remember(self, trace: Trace) -> dict[Number, Source]:
        """Start a trace: replace integers in the layers' attributes by ``Length`` objects, and return their sources.

        Integers below 2, and those of ``_LARGEST_WIDTH`` or more, stay as they are.
        """
        trace.fresh(*named_tensors(self.model).values())
        for name, tensor in other_tensors(self.model).items():
            trace.fresh(tensor)
            why = f"{name} is a tensor that is no parameter or buffer; if a call has left it there, give a fresh model"
            trace.pin(*trace.rows(tensor), why=why)
        sources: dict[Number, Source] = {}

        def length(value: Any, *place: Any) -> Any:
            if type(value) is not int or not 1 < value < _LARGEST_WIDTH:
                return value
            sources[Number(*place)] = source = Source(trace, partial(trace.positions.new, value))
            return Length.of(value, (source,))

        for layer, module in self._layers.items():
            for name, value in list(vars(module).items()):
                if type(value) in (tuple, list, torch.Size):
                    replacement = type(value)(length(number, layer, name, place) for place, number in enumerate(value))
                else:
                    replacement = length(value, layer, name, None)
                module.__dict__[name] = replacement
        return sources

    def run(self, example_inputs: object, mode: bool, *watching: AbstractContextManager[object]) -> object:
        """Run the copy on inputs without values, in training mode if ``mode`` is True.

        Batch norm stays in evaluation mode, because it rejects small batches. All runs make equal random draws.
        """
        self._path.clear()
        _clear_einops()
        for layer in self._layers.values():
            layer.training = mode and not isinstance(layer, _NormBase)
        inputs = without_values(example_inputs)
        with ExitStack() as stack, kept_random_state(0), torch.no_grad(), torch.device("meta"):
            if torch.backends.opt_einsum.enabled:  # the order of products would depend on widths
                stack.enter_context(torch.backends.opt_einsum.flags(enabled=False))
            if self.says_tracing:
                module_names = vars(torch.jit)  # where code looks it up
                stack.callback(module_names.__setitem__, "is_tracing", module_names["is_tracing"])
                module_names["is_tracing"] = lambda: True
            if (name := "_detect_is_causal_mask") in (module_names := vars(transformer)):
                # This function reads a mask's values only for a hint; torch applies the mask with or without the hint.
                stack.callback(module_names.__setitem__, name, module_names[name])
                module_names[name] = lambda mask, is_causal, size: bool(is_causal)
            for torch_mode in (Alike(self._originals), *watching):
                stack.enter_context(torch_mode)
            return call(self.model, inputs)


def _compare_width(layer: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
    """Compare the width with that of the input, so that a trace cuts it; no code of the layer reads it."""
    if inputs:
        bool(inputs[0].shape[1] == layer.num_features)


def _clear_einops() -> None:
    """Clear the caches of einops, which hide from the trace where lengths come from."""
    loaded = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "einops"]
    for function in chain.from_iterable(vars(module).values() for module in loaded):
        getattr(function, "cache_clear", int)()


def without_values(example_inputs: object) -> object:
    """Return the inputs with all tensors on torch's meta device."""
    return tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, example_inputs)
