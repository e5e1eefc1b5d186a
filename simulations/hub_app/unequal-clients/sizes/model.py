"""The model, as a function of a rate: at 0.5 each layer has half of its channels."""

from torch import nn

from heterofl_flwr.core import width


def build(rate: float) -> nn.Module:
    """Return the model at a rate; it accepts images of any size with up to 3 channels."""
    first, second = width(32, rate), width(64, rate)
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(second, 10),
    )
