"""Models by name, and the three set-ups of the paper."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.models import CNN, MLP, LeNet
from heterofl_flwr.nn.preresnet import BottleneckPreResNet, PreResNet
from heterofl_flwr.nn.transformer import Transformer

Build = Callable[[float], nn.Module]
"""From a rate to a model of that rate."""

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "mlp": MLP,
    "lenet": LeNet,
    "preresnet18": partial(PreResNet, blocks=(1, 1, 1, 2)),
    "preresnet18-later": partial(PreResNet, blocks=(2, 2, 2, 2)),
    "preresnet50": partial(BottleneckPreResNet, blocks=(3, 4, 6, 3)),
    "transformer": Transformer,
}
"""Models by name: whatever takes ``rate=`` and its own options. ``preresnet18`` is the paper's; ``mlp`` and ``lenet``
are those of the baselines that it quotes."""


def build_model(name: str, **options: object) -> Build:
    """Return the function from a rate to the named model at that rate, with these options.

    Both the name and the names of the options are checked at once, not when the first model is built.
    """
    if name not in MODELS:
        raise ConfigError(f"{name!r} is no model; expected one of {', '.join(MODELS)}")
    signature = inspect.signature(MODELS[name])
    try:
        signature.bind(**options, rate=1.0)
    except TypeError as error:
        known = ", ".join(option for option in signature.parameters if option != "rate")
        raise ConfigError(f"model {name}: {error}; its options are {known}") from error
    return partial(_build, MODELS[name], options)


def _build(make: Callable[..., nn.Module], options: Mapping[str, object], rate: float) -> nn.Module:
    return make(**options, rate=rate)


@dataclass(frozen=True, slots=True)
class Setup:
    """A model with its options and the shape and type of one input."""

    model: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    options: Mapping[str, object] = field(default_factory=dict)

    def build(self, **options: object) -> Build:
        """Return the function from a rate to the model; ``options`` are added to the set-up's own."""
        return build_model(self.model, **{**self.options, **options})

    def example(self) -> torch.Tensor:
        """Return a batch of one input, all zeros."""
        return torch.zeros(1, *self.shape, dtype=self.dtype)


PAPER: Mapping[str, Setup] = MappingProxyType(
    {
        "mnist": Setup("cnn", (1, 28, 28), options={"channels": 1, "classes": 10}),
        "cifar10": Setup("preresnet18", (3, 32, 32), options={"channels": 3, "classes": 10}),
        "wikitext2": Setup("transformer", (64,), torch.int64, options={"vocabulary": 33_279}),
    }
)
"""The paper's model of each data set (section 4)."""
