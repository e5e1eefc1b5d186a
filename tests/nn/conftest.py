"""Small models and batches for them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from heterofl_flwr.nn.models import build_model
from heterofl_flwr.nn.transformer import TransformerShape

WORDS = 50


@pytest.fixture
def small() -> Callable[..., Callable[[float], nn.Module]]:
    """Return a function from a model's name and options to a small model's ``build``."""
    shapes: dict[str, dict[str, object]] = {
        "cnn": {"channels": 3, "hidden": (16, 32)},
        "lenet": {"inputs": (3, 16, 16), "hidden": (6, 16), "convolutions": 1},
        "preresnet18": {"hidden": (16, 16, 32, 32)},
        "preresnet50": {"hidden": (16, 16, 32, 32)},
        "transformer": {
            "vocabulary": WORDS,
            "shape": TransformerShape(sequence=12, embedding=64, hidden=48, heads=4, layers=2, dropout=0.0),
        },
    }
    return lambda name, **options: build_model(name, **{**shapes[name], **options})


@pytest.fixture
def inputs() -> Callable[[str], torch.Tensor]:
    """Return a function from a model's name to a batch for its small form."""

    def make(name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        if name == "transformer":
            return torch.randint(WORDS + 1, (5, 12), generator=generator)
        return torch.randn(5, 3, 16, 16, generator=generator)

    return make
