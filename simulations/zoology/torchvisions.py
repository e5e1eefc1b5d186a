"""The classification models of torchvision, with inputs as small as each of them takes."""

from typing import Any

import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn

from simulations.zoology.lively import make_lively

SIZE = 64
ENDS = (3, 1000)
"""The channels of an image, and the classes."""
DOUBLE = 120_000_000
"""Up to so many parameters a model is checked in double precision; beyond, memory does not allow it."""

# Those that do not take 64 x 64: auxiliary heads, windows and patches of a fixed size.
_SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 56}


def names() -> list[str]:
    """Return the names of all of them."""
    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def size_of(name: str) -> int:
    """Return the side of the images for a model."""
    return _SIZES.get(name, SIZE)


def make(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """Return a model with lively weights and two images."""
    torch.manual_seed(seed)
    options: dict[str, Any] = {"image_size": size_of(name)} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # by a slow generator, and all weights are drawn anew
    model = torchvision.models.get_model(name, weights=None, **options)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model = model.to(torch.float64 if parameters <= DOUBLE else torch.float32)
    make_lively(model, seed)
    dtype = next(model.parameters()).dtype
    return model, torch.randn(2, 3, size_of(name), size_of(name), dtype=dtype)
