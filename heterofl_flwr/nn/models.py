"""The models CNN and MLP, all models by name, and the paper's three set-ups."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from types import MappingProxyType

import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.axes import Axes, Axis, build_channel_axis
from heterofl_flwr.core.layer_rules import register
from heterofl_flwr.core.levels import width
from heterofl_flwr.nn.layers import make_norm, make_scaler
from heterofl_flwr.nn.preresnet import BottleneckPreResNet, PreResNet
from heterofl_flwr.nn.transformer import Transformer


class CNN(nn.Module):
    """The paper's convolutional network (MNIST).

    A stage is a 3x3 convolution, Scaler, norm and ReLU, with pooling between stages. The output of the last stage is
    averaged over all positions and passed to a linear classifier.

    Parameters
    ----------
    channels : int
        Channels of the input image.
    classes : int
        Number of classes.
    hidden : Sequence[int]
        Width of each stage at rate 1.
    rate : float
        The model's rate: each stage keeps this fraction of its channels.
    global_rate : float
        The rate of the largest model, for the Scaler.
    norm : str
        Kind of norm; see ``make_norm``.
    scaler : bool
        Whether to use Scalers.
    """

    label_rows: tuple[str, ...] = ("linear.weight", "linear.bias")

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        hidden: Sequence[int] = (64, 128, 256, 512),
        *,
        rate: float = 1.0,
        global_rate: float = 1.0,
        norm: str = "sbn",
        scaler: bool = True,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, full_width in enumerate(hidden, 1):
            if number > 1:
                layers[f"pool{number - 1}"] = nn.MaxPool2d(2)
            channels_kept = width(full_width, rate)
            layers[f"conv{number}"] = nn.Conv2d(channels, channels_kept, 3, padding=1)
            layers[f"scaler{number}"] = make_scaler(rate, global_rate, scaler)
            layers[f"norm{number}"] = make_norm(norm, channels_kept)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            channels = channels_kept
        self.features = nn.Sequential(layers)
        self.linear = nn.Linear(channels, classes)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes) of images (batch, channels, height, width)."""
        features = F.adaptive_avg_pool2d(self.features(images), 1).flatten(1)  # (batch, last width)
        logits: torch.Tensor = self.linear(features)
        return logits


class MLP(nn.Module):
    """Convolutions, if any, then linear layers, with ReLU between them (Liang et al., 2020).

    ``inputs`` is the shape of one input. ``hidden`` has the width of each hidden layer at rate 1. The first
    ``convolutions`` of these layers are 5x5 convolutions with pooling. There are no norms, and therefore no Scalers.
    The defaults are for MNIST.
    """

    label_rows: tuple[str, ...] = ("output.weight", "output.bias")

    def __init__(
        self,
        inputs: Sequence[int] = (1, 28, 28),
        classes: int = 10,
        hidden: Sequence[int] = (512, 256, 256, 128),
        *,
        convolutions: int = 0,
        rate: float = 1.0,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        shape = tuple(inputs)
        for number, full_width in enumerate(hidden, 1):
            channels_kept = width(full_width, rate)
            if number <= convolutions:
                layers[f"conv{number}"] = nn.Conv2d(shape[0], channels_kept, 5)
                shape = channels_kept, *((side - 4) // 2 for side in shape[1:])
            else:
                # Flatten concatenates whole feature maps, so a prefix of its output is made of the first maps.
                layers.setdefault("flatten", nn.Flatten())
                layers[f"linear{number}"] = nn.Linear(prod(shape), channels_kept)
                shape = (channels_kept,)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            if number <= convolutions:
                layers[f"pool{number}"] = nn.MaxPool2d(2)
        layers.setdefault("flatten", nn.Flatten())
        self.hidden = nn.Sequential(layers)
        self.output = nn.Linear(prod(shape), classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes)."""
        logits: torch.Tensor = self.output(self.hidden(x))
        return logits


@register(MLP)
def _find_flattened(full_layer: MLP, local: MLP) -> dict[str, Axes]:
    """Return the axes of the first linear layer: all inputs from one channel are kept or dropped together.

    Without convolutions, return {}.
    """
    channels = [layer.out_channels for layer in full_layer.hidden if isinstance(layer, nn.Conv2d)]
    if not channels:
        return {}
    (name, linear), (_, smaller) = (
        next((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
        for model in (full_layer, local)
    )
    pixels = linear.in_features // channels[-1]
    places = [(0, channel) for channel in range(channels[-1]) for _ in range(pixels)]
    inputs = build_channel_axis(places, [(channels[-1], smaller.in_features // pixels)])
    return {f"{name}.weight": (Axis(linear.out_features, smaller.out_features), inputs)}


Build = Callable[[float], nn.Module]
"""Function from a rate to a model of that rate."""

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "mlp": MLP,
    "lenet": partial(MLP, inputs=(3, 32, 32), hidden=(6, 16, 120, 100), convolutions=2),
    "preresnet18": partial(PreResNet, blocks=(1, 1, 1, 2)),
    "preresnet18-later": partial(PreResNet, blocks=(2, 2, 2, 2)),
    "preresnet50": partial(BottleneckPreResNet, blocks=(3, 4, 6, 3)),
    "transformer": Transformer,
}
"""Functions that make models, by name. ``cnn``, ``preresnet18`` and ``transformer`` are the paper's models; ``mlp`` and
``lenet`` are the models of the baselines that the paper quotes.

Each takes ``rate=``. A run also passes those of these options that the signature has: ``hidden``, ``norm``, ``scaler``,
``encoder_init`` and ``global_rate`` from the settings, ``channels``, ``inputs``, ``classes`` and ``vocabulary`` from
the data.
"""


def build_model(name: str, **options: object) -> Build:
    """Return a function from a rate to a new model of this name with these options.

    Raise ``ConfigError`` at once for an unknown name or option.
    """
    if name not in MODELS:
        raise ConfigError(
            f"{name!r} is no model; expected one of {', '.join(MODELS)}, or a function of yours, 'module:function'"
        )
    signature = inspect.signature(MODELS[name])
    try:
        signature.bind(**options, rate=1.0)
    except TypeError as error:
        parameters = ", ".join(option for option in signature.parameters if option != "rate")
        raise ConfigError(f"model {name}: {error}; its options are {parameters}") from error
    return partial(_build, MODELS[name], options)


def is_named(build: Build) -> bool:
    """Return True if ``build`` is a result of ``build_model``. Its models have no state except parameters."""
    return isinstance(build, partial) and build.func is _build


def _build(make: Callable[..., nn.Module], options: Mapping[str, object], rate: float) -> nn.Module:
    return make(**options, rate=rate)


@dataclass(frozen=True, slots=True)
class Setup:
    """Name and options of a model, with the shape and dtype of one input."""

    model: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    options: Mapping[str, object] = field(default_factory=dict)

    def build(self, **options: object) -> Build:
        """Return a function from a rate to a new model. ``options`` override those of the set-up."""
        return build_model(self.model, **{**self.options, **options})

    def example(self) -> torch.Tensor:
        """Return a batch with one input, filled with zeros."""
        return torch.zeros(1, *self.shape, dtype=self.dtype)


PAPER: Mapping[str, Setup] = MappingProxyType(
    {
        "mnist": Setup("cnn", (1, 28, 28), options={"channels": 1, "classes": 10}),
        "cifar10": Setup("preresnet18", (3, 32, 32), options={"channels": 3, "classes": 10}),
        "wikitext2": Setup("transformer", (64,), torch.int64, options={"vocabulary": 33_279}),
    }
)
"""The paper's model for each data set (section 4)."""
