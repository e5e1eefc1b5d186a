"""Running a model: its inputs, device, state and threads."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import isroutine

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters; the CPU if it has no parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def num_parameters(model: nn.Module) -> int:
    """Return the number of entries of a model's parameters; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name. A shared tensor appears under each name."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def to_double(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on its device or, from Apple's MPS, which has no float64, on the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def arguments(inputs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the positional and keyword arguments that ``call`` passes for ``inputs``."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def call(model: nn.Module, inputs: object) -> object:
    """Call a model with a tensor, a tuple of arguments or a mapping of keyword arguments."""
    positional, keywords = arguments(inputs)
    return model(*positional, **keywords)


def tensors_in(value: object, seen: dict[int, object] | None = None) -> Iterator[Tensor]:
    """Yield all tensors in a value: in containers, and in attributes of objects other than modules or functions."""
    seen = {} if seen is None else seen
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in seen and not isinstance(leaf, nn.Module | type) and not isroutine(leaf):
            seen[id(leaf)] = leaf
            slots = [name for kind in type(leaf).__mro__ for name in vars(kind).get("__slots__", ())]
            yield from tensors_in([getattr(leaf, name, None) for name in slots], seen)
            yield from tensors_in(list(getattr(leaf, "__dict__", {}).values()), seen)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this context, a model is in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def save_state(model: nn.Module) -> Callable[[], None]:
    """Return a function that restores the modes, attributes and buffers that a model's modules have now."""
    modules = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]

    @torch.no_grad()
    def restore() -> None:
        for module, attributes, buffers in modules:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
        for buffer, value in values:
            buffer.copy_(value)

    return restore


@contextmanager
def plain_attention() -> Iterator[None]:
    """Within this context, attention runs as matrix products, which FLOP counters see on all devices."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Within this context, torch uses ``number`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
