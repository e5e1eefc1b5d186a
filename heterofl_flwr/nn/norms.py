"""The norms that the paper compares (Tables 4 and 5)."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from heterofl_flwr.errors import ConfigError

GROUPS = 4
"""Groups of the paper's GroupNorm."""


def _none(channels: int) -> nn.Module:
    del channels
    return nn.Identity()


def _instance(channels: int) -> nn.Module:
    return nn.GroupNorm(channels, channels)


def _group(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


def _layer(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def _static_batch(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)


NORMS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {"none": _none, "in": _instance, "gn": _group, "ln": _layer, "sbn": _static_batch}
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
