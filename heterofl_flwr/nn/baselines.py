"""The two models of the baselines that the paper quotes (Liang et al., 2020), at any rate."""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from heterofl_flwr.core.widths import width
from heterofl_flwr.nn.scaler import make_scaler


class MLP(nn.Module):
    """Linear layers with ReLU between them; on MNIST, at its own widths, 633,226 parameters.

    Parameters
    ----------
    inputs : Sequence[int]
        The shape of one input.
    classes : int
        Number of classes.
    hidden : Sequence[int]
        The layers' widths at rate 1.
    rate : float
        The model's rate: each hidden layer keeps that share of its units.
    global_rate : float
        The rate of the largest model of the mix, for the Scaler.
    scaler : bool
        Whether there are Scalers; at rate 1 they do nothing.
    """

    label_rows: tuple[str, ...] = ("output.weight", "output.bias")

    def __init__(
        self,
        inputs: Sequence[int] = (1, 28, 28),
        classes: int = 10,
        hidden: Sequence[int] = (512, 256, 256, 128),
        *,
        rate: float = 1.0,
        global_rate: float = 1.0,
        scaler: bool = True,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        seen = prod(inputs)
        for number, full in enumerate(hidden, 1):
            layers[f"linear{number}"] = nn.Linear(seen, width(full, rate))
            layers[f"scaler{number}"] = make_scaler(rate, global_rate, scaler)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            seen = width(full, rate)
        self.hidden = nn.Sequential(layers)
        self.output = nn.Linear(seen, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (batch, classes)."""
        logits: torch.Tensor = self.output(self.hidden(x.flatten(1)))
        return logits


class LeNet(nn.Module):
    """Two 5x5 convolutions with ReLU and pooling, then linear layers; on CIFAR10, at its own widths, 64,102 parameters.

    Parameters
    ----------
    inputs : Sequence[int]
        The shape of one image: channels, height, width.
    classes : int
        Number of classes.
    hidden : Sequence[int]
        The widths of the two convolutions and of the linear layers, at rate 1.
    rate, global_rate, scaler
        As ``MLP``'s.
    """

    label_rows: tuple[str, ...] = ("output.weight", "output.bias")

    def __init__(
        self,
        inputs: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        hidden: Sequence[int] = (6, 16, 120, 100),
        *,
        rate: float = 1.0,
        global_rate: float = 1.0,
        scaler: bool = True,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        seen, height, breadth = inputs
        for number, full in enumerate(hidden, 1):
            kept = width(full, rate)
            if number <= 2:
                layers[f"conv{number}"] = nn.Conv2d(seen, kept, 5)
                height, breadth = (height - 4) // 2, (breadth - 4) // 2
            else:
                # The first of them sees whole maps, one after the other, so a prefix of it is whole maps too.
                layers[f"linear{number}"] = nn.Linear(seen, kept)
            layers[f"scaler{number}"] = make_scaler(rate, global_rate, scaler)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            if number <= 2:
                layers[f"pool{number}"] = nn.MaxPool2d(2)
            if number == 2:
                layers["flatten"] = nn.Flatten()
            seen = kept * height * breadth if number == 2 else kept
        self.hidden = nn.Sequential(layers)
        self.output = nn.Linear(seen, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (batch, classes)."""
        logits: torch.Tensor = self.output(self.hidden(x))
        return logits
