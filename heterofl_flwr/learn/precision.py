"""In how many bits the products of a model are computed."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def lowered(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which convolutions and matrix products take this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
