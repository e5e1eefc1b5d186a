"""Small models, and the slow twin of slicing."""

from collections.abc import Callable, Mapping

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


@pytest.fixture
def zero_extended() -> Callable[[nn.Module, Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Return the slow twin of slicing: a model's state in which all but a leading block is zero."""

    def extend(full: nn.Module, sub_state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        extended = {}
        for name, value in full.state_dict().items():
            block = tuple(slice(0, length) for length in sub_state[name].shape)
            extended[name] = torch.zeros_like(value)
            extended[name][block] = sub_state[name]
        return extended

    return extend
