"""The HeteroFL authors' code, imported as it is, and our counterparts of their models.

Their modules have plain names (``config``, ``models``, ``fed``), share one global dictionary of settings and read a
file of the working directory when imported. All of that is put in place for the import and undone after it.
"""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from heterofl_flwr.core import Plan
from heterofl_flwr.nn.models import build_model
from heterofl_flwr.nn.transformer import TransformerShape

HEADS = 8
CLASSES = 10
WORDS = 40
OURS = {"conv": "cnn", "resnet18": "preresnet18-later", "transformer": "transformer"}
THEIR_HEADS = {"*.linear_[qkv].*": (HEADS, 0), "*.linear_o.weight": (HEADS, 1)}


class _Encoder(nn.Module):
    """What torch's TransformerEncoder was to them; today's passes arguments that their layers do not take."""

    def __init__(self, layer: nn.Module, number: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@dataclass(frozen=True)
class Authors:
    """Their code and their settings, and the same models of ours."""

    models: ModuleType
    fed: ModuleType
    utils: ModuleType
    cfg: dict[str, object]

    def configure(self, model: str, *, global_rate: float = 1.0, hidden: Sequence[int] = (16, 16, 32, 48)) -> None:
        """Set their settings for a small model."""
        self.cfg["model_name"] = model
        self.cfg["global_model_rate"] = global_rate
        self.cfg["conv"] = self.cfg["resnet"] = {"hidden_size": list(hidden)}

    def theirs(self, rate: float, **options: object) -> nn.Module:
        """Return their model of the configured name at a rate."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(round(1000 * rate))
            return getattr(self.models, self.cfg["model_name"])(model_rate=rate, **options)

    def ours(self) -> Callable[[float], nn.Module]:
        """Return the function from a rate to our model."""
        cfg, name = self.cfg, {**OURS, "resnet50": "preresnet50"}[self.cfg["model_name"]]
        options: dict[str, object] = {"global_rate": cfg["global_model_rate"], "scaler": cfg["scale"]}
        if name == "transformer":
            sizes = cfg["transformer"]
            shape = TransformerShape(
                sequence=cfg["bptt"],
                embedding=sizes["embedding_size"],
                hidden=sizes["hidden_size"],
                heads=sizes["num_heads"],
                layers=sizes["num_layers"],
                dropout=sizes["dropout"],
            )
            return build_model(name, vocabulary=cfg["num_tokens"], shape=shape, **options)
        norm = {"bn": "sbn"}.get(cfg["norm"], cfg["norm"])
        hidden = cfg["conv"]["hidden_size"]
        return build_model(name, channels=cfg["data_shape"][0], hidden=hidden, norm=norm, **options)

    def federation(self, state: Mapping[str, torch.Tensor], rates: Sequence[float], labels: Sequence[Sequence[int]]):
        """Return their Federation over a copy of the state, which it changes in place."""
        self.cfg["model_split_mode"] = "fix"
        return self.fed.Federation({name: value.clone() for name, value in state.items()}, list(rates), list(labels))

    def plans(self, rates: Sequence[float]) -> dict[float, Plan]:
        """Return the plan between our models for each rate."""
        build = self.ours()
        full = build(self.cfg["global_model_rate"])
        return {rate: Plan.of(full, build(rate)) for rate in rates}


def copy_by_position(source: nn.Module, target: nn.Module) -> None:
    """Load one's parameters into the other, whose names differ and whose order does not."""
    with torch.no_grad():
        for value, parameter in zip(source.parameters(), target.parameters(), strict=True):
            parameter.copy_(value)


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Return the model with parameters that are all different, norms' included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1) * 0.5)
    return model


def import_theirs(source: Path) -> Authors:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(source)
        patch.syspath_prepend(str(source))
        import config
        import fed
        import models
        import utils

        sys.modules["models.transformer"].TransformerEncoder = _Encoder
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(source)):
                del sys.modules[name]
    return Authors(models, fed, utils, config.cfg)
