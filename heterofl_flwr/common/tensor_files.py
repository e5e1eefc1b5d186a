"""Tensors as the content of a file; apart from ``files``, which need not load torch."""

from collections.abc import Mapping

import torch
from safetensors.torch import save
from torch import Tensor


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the content of a safetensors file."""
    # Tied weights share memory, which the format does not allow, so each tensor is copied.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return bytes(save(copies))
