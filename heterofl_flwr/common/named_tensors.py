"""Tensors by name: those under a prefix, and all as the content of a file; ``files`` need not load torch."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

Value = TypeVar("Value")


def entries_under(prefix: str, named: Mapping[str, Value]) -> dict[str, Value]:
    """Return the entries whose names begin with a prefix, named without it."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the content of a safetensors file."""
    # Tied weights share memory, which the format does not allow, so each tensor is copied.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return bytes(save(copies))
