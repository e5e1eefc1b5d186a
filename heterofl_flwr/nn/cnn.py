"""The paper's convolutional network (MNIST)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.core.levels import width
from heterofl_flwr.nn.layers import make_scaler
from heterofl_flwr.nn.static_norm import make_norm


class CNN(nn.Module):
    """Stages of 3x3 convolution, Scaler, norm, ReLU and pooling, then a linear classifier.

    There is no pooling after the last stage; its output is averaged over all positions.

    Parameters
    ----------
    channels : int
        Channels of the input image.
    classes : int
        Number of classes.
    hidden : Sequence[int]
        The stages' widths at rate 1.
    rate : float
        The model's rate: each stage keeps that share of its channels.
    global_rate : float
        The rate of the largest model of the mix, for the Scaler.
    norm : str
        See ``make_norm``.
    scaler : bool
        Whether there are Scalers.
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
        for number, full in enumerate(hidden, 1):
            if number > 1:
                layers[f"pool{number - 1}"] = nn.MaxPool2d(2)
            kept = width(full, rate)
            layers[f"conv{number}"] = nn.Conv2d(channels, kept, 3, padding=1)
            layers[f"scaler{number}"] = make_scaler(rate, global_rate, scaler)
            layers[f"norm{number}"] = make_norm(norm, kept)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            channels = kept
        self.features = nn.Sequential(layers)
        self.linear = nn.Linear(channels, classes)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes) of images (batch, channels, height, width)."""
        features = F.adaptive_avg_pool2d(self.features(images), 1).flatten(1)  # (batch, last width)
        logits: torch.Tensor = self.linear(features)
        return logits
