"""The two models of the baselines that the paper quotes (Liang et al., 2020), at any rate."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import nn

from heterofl_flwr.core.levels import width
from heterofl_flwr.nn.layers import make_scaler


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
        widths = [width(full, rate) for full in hidden]
        scale = partial(make_scaler, rate, global_rate, scaler)
        self.hidden = nn.Sequential(_linears(prod(inputs), widths, scale))
        self.output = nn.Linear(widths[-1] if widths else prod(inputs), classes)

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
        widths = [width(full, rate) for full in hidden]
        scale = partial(make_scaler, rate, global_rate, scaler)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        seen, height, breadth = inputs
        for number, kept in enumerate(widths[:2], 1):
            layers[f"conv{number}"] = nn.Conv2d(seen, kept, 5)
            layers |= {f"scaler{number}": scale(), f"relu{number}": nn.ReLU(inplace=True)}
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            seen, height, breadth = kept, (height - 4) // 2, (breadth - 4) // 2
        # The first linear layer sees whole maps, one after the other, so a prefix of it is whole maps too.
        layers["flatten"] = nn.Flatten()
        self.hidden = nn.Sequential(layers | _linears(seen * height * breadth, widths[2:], scale, first=3))
        self.output = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (batch, classes)."""
        logits: torch.Tensor = self.output(self.hidden(x))
        return logits


def _linears(
    seen: int, widths: Sequence[int], scale: Callable[[], nn.Module], first: int = 1
) -> OrderedDict[str, nn.Module]:
    """Return linear layers of these widths, each with its Scaler and a ReLU, named by number."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, kept in enumerate(widths, first):
        layers[f"linear{number}"] = nn.Linear(seen, kept)
        layers |= {f"scaler{number}": scale(), f"relu{number}": nn.ReLU(inplace=True)}
        seen = kept
    return layers
