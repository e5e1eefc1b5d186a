"""Running a model: its inputs, device, memory layout and threads."""

from collections.abc import Iterator, Mapping
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


def bears_channels_last(model: nn.Module) -> bool:
    """Return True if channels-last convolutions of a model are safe on this processor.

    Torch 2.14 has a bug on processors with AVX2 but without AVX512: the backward pass of a strided 1x1 convolution with
    fewer than eight input channels writes outside its memory.
    """
    fewest = min((parameter.shape[1] for parameter in model.parameters() if parameter.shape[2:] == (1, 1)), default=8)
    return fewest >= 8 or torch.backends.cpu.get_cpu_capability() != "AVX2"


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


def to_channels_last(model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
    """Convert convolution weights on a CPU to channels-last, if that is safe.

    Return pairs (converted weight, its previous tensor).
    """
    fit = bears_channels_last(model)
    weights = [p for p in model.parameters() if fit and p.dim() == 4 and p.device.type == "cpu" and p.is_contiguous()]
    homes = [weight.data for weight in weights]
    for weight in weights:
        # Not contiguous(memory_format=...): it leaves a weight with one input channel unchanged, because its strides
        # fit both layouts. The outputs of its layer and of all layers after it would then be channels first.
        weight.data = weight.data.to(memory_format=torch.channels_last)
    return list(zip(weights, homes, strict=True))


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """Within this context, convolution weights on a CPU are in channels-last layout if ``to_channels_last`` allows it.

    On exit, the values are copied into the original tensors, so that other references to these tensors see them.
    """
    homes = to_channels_last(model)
    try:
        yield
    finally:
        for weight, home in homes:
            weight.data = home.copy_(weight.data)


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
