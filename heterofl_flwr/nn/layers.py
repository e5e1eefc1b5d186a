"""Layers for models of several widths: the Scaler and norms."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import gcd
from types import MappingProxyType

import torch
from torch import nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import exact_rate


class Scaler(nn.Module):
    """Division by ``rate`` in training; identity in evaluation.

    If a norm layer follows directly, the Scaler has almost no effect. The Scaler matters in the Transformer, where
    no norm follows directly, and in models without norms, which may diverge with Scalers.

    Parameters
    ----------
    rate : float | Fraction
        The model's rate divided by the rate of the largest model.
    """

    def __init__(self, rate: float | Fraction = 1.0) -> None:
        super().__init__()
        self.rate = float(exact_rate(rate))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x / rate`` in training and ``x`` in evaluation."""
        # Dividing by 1 changes nothing and costs a pass over the activations.
        return x / self.rate if self.training and self.rate != 1 else x

    def extra_repr(self) -> str:
        """Return the rate, for the module's ``repr``."""
        return f"rate={self.rate:g}"


def make_scaler(rate: float, global_rate: float, enabled: bool = True) -> nn.Module:
    """Return a ``Scaler`` that divides by ``rate / global_rate``; the identity if ``enabled`` is False."""
    ratio = exact_rate(rate) / exact_rate(global_rate)
    if ratio > 1:
        raise ConfigError(f"a model of rate {rate} is larger than the global model of rate {global_rate}")
    return Scaler(ratio) if enabled else nn.Identity()


GROUPS = 4
"""Number of groups of the paper's group norm, if it divides the number of channels; see ``make_norm``."""

NORMS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "none": lambda channels: nn.Identity(),
        "in": lambda channels: nn.GroupNorm(channels, channels),
        "gn": lambda channels: nn.GroupNorm(gcd(GROUPS, channels), channels),
        "ln": lambda channels: nn.GroupNorm(1, channels),
        "sbn": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
    }
)
"""Functions from a number of channels to a norm layer, by the norm's name."""


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return a norm layer for images with ``channels`` channels.

    Parameters
    ----------
    kind : str
        ``none``: no norm. ``in``: instance norm. ``gn``: group norm with gcd(4, ``channels``) groups. ``ln``: group
        norm with one group. ``sbn``: static batch norm, that is, batch norm without running statistics.
    channels : int
        Number of channels.
    """
    if kind not in NORMS:
        raise ConfigError(f"{kind!r} is no norm; expected one of {', '.join(NORMS)}")
    return NORMS[kind](channels)
