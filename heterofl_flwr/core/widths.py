"""Widths: the number of channels that a layer keeps at a rate."""

import math
from fractions import Fraction

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import exact_rate


def width(size: int, rate: float | Fraction, heads: int = 1) -> int:
    """Return the number of channels that a model of ``rate`` keeps of a layer with ``size`` channels.

    Parameters
    ----------
    size : int
        The layer's width at rate 1.
    rate : float | Fraction
        The model's rate, 0 < rate <= 1. A float means the decimal number it prints as.
    heads : int
        Number of equal parts of the width. Each part is cut separately, so the result is a multiple of ``heads``. Use
        it for the embedding of an attention model.
    """
    if size < 1 or heads < 1 or size % heads:
        raise ConfigError(
            f"a width of {size} in {heads} heads is not usable: expected a positive multiple of the number of heads"
        )
    return heads * math.ceil(size // heads * exact_rate(rate))
