"""Layers of models of several widths: the Scaler (section 3.3) and norms."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import gcd
from types import MappingProxyType

import torch
from torch import nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import exact_rate


class Scaler(nn.Module):
    """Divide by ``rate`` in training; the identity in evaluation.

    Before a norm that removes scale (sbn, in, gn, ln) it changes nothing but the weight of the norm's epsilon. It
    matters without norms, and in a Transformer.

    Parameters
    ----------
    rate : float | Fraction
        The model's rate divided by the rate of the largest model of the mix.
    """

    def __init__(self, rate: float | Fraction = 1.0) -> None:
        super().__init__()
        self.rate = float(exact_rate(rate))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x / rate`` in training and ``x`` in evaluation."""
        # Dividing by 1 would change no bit and cost a pass over the activations.
        return x / self.rate if self.training and self.rate != 1 else x

    def extra_repr(self) -> str:
        """Show the rate where the model is printed."""
        return f"rate={self.rate:g}"


def make_scaler(rate: float, global_rate: float, enabled: bool = True) -> nn.Module:
    """Return the Scaler of a model, or the identity where it is not enabled.

    A model may use one instance at many places: a Scaler holds no parameters and no buffers.
    """
    ratio = exact_rate(rate) / exact_rate(global_rate)
    if ratio > 1:
        raise ConfigError(f"a model of rate {rate} is larger than the global model of rate {global_rate}")
    return Scaler(ratio) if enabled else nn.Identity()


GROUPS = 4
"""Groups of the paper's GroupNorm."""

NORMS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "none": lambda channels: nn.Identity(),
        "in": lambda channels: nn.GroupNorm(channels, channels),
        "gn": lambda channels: nn.GroupNorm(gcd(GROUPS, channels), channels),
        "ln": lambda channels: nn.GroupNorm(1, channels),
        "sbn": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
    }
)
"""From a norm's name to a function that makes it for a number of channels."""


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return the norm of this kind for images of ``channels`` channels.

    Parameters
    ----------
    kind : str
        ``none``; ``in``, instance norm; ``gn``, four groups, or the greatest common divisor of 4 and ``channels``
        where 4 does not divide them; ``ln``, one group; ``sbn``, static batch norm: batch norm without running
        statistics, which ``with_static_norm`` supplies for evaluation.
    channels : int
        Number of channels.
    """
    if kind not in NORMS:
        raise ConfigError(f"{kind!r} is no norm; expected one of {', '.join(NORMS)}")
    return NORMS[kind](channels)
