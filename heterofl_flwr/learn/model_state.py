"""What training and evaluation borrow from a model and from torch, and give back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters are; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode; give every module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """On a CPU, hold convolution weights channels last; the paper's CNN trains up to a quarter faster so.

    Afterwards the values are in the tensors in which they were before, so states and views taken earlier hold.
    """
    weights = [p for p in model.parameters() if p.dim() == 4 and p.device.type == "cpu" and p.is_contiguous()]
    homes = [weight.data for weight in weights]
    for weight in weights:
        # Not contiguous(memory_format=...): a weight of one input channel passes for channels last as it is, and then
        # the outputs of its layer, and of all layers after it, stay channels first.
        weight.data = weight.data.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for weight, home in zip(weights, homes, strict=True):
            weight.data = home.copy_(weight.data)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators, which dropout draws from; give their state back (on CPU and CUDA)."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield
