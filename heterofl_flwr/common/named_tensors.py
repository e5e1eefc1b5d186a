"""Tensors by name: selection by prefix, comparison and serialisation."""

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

Value = TypeVar("Value")


def entries_under(prefix: str, named: Mapping[str, Value]) -> dict[str, Value]:
    """Return the entries whose names begin with a prefix; the new names lack the prefix."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file."""
    # safetensors refuses tensors that share memory, as tied weights do, so each tensor is copied.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return bytes(save(copies))


def name_misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describe up to three tensors that are missing, unexpected or of a wrong shape; '' if all fit."""
    shapes, expected_shapes = (
        {name: tuple(tensor.shape) for name, tensor in state.items()} for state in (tensors, expected)
    )
    wrong = sorted(
        name for name in shapes.keys() | expected_shapes.keys() if shapes.get(name) != expected_shapes.get(name)
    )
    return "; ".join(f"{name}: {shapes.get(name)}, expected {expected_shapes.get(name)}" for name in wrong[:3])


def norm_between(state: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """Return the L2 norm of the difference of two states, over the tensors of ``state``."""
    changes = (tensor.double() - reference[name].to(tensor.device) for name, tensor in state.items())
    return math.hypot(*(change.norm().item() for change in changes))
