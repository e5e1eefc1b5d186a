"""Tensors by name: select them by prefix, and serialise them. Not in ``files``, which does not import torch."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

Value = TypeVar("Value")


def entries_under(prefix: str, named: Mapping[str, Value]) -> dict[str, Value]:
    """Return the entries whose names begin with a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the content of a safetensors file."""
    # safetensors refuses tensors that share memory, as tied weights do, so each tensor is copied.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return bytes(save(copies))
