"""From a full width and a rate to the width of a slice.

Model builders and plans both call ``width`` and nothing else, so a client's model and the slice sent to it cannot
disagree. The arithmetic is in exact fractions: in floats ``math.ceil(100 * 0.07)`` is 8.
"""

import math
from fractions import Fraction

from heterofl_flwr.core.levels import exact_rate
from heterofl_flwr.errors import ConfigError


def width(full: int, rate: float | Fraction, heads: int = 1) -> int:
    """Return how many of ``full`` channels a model of the given rate keeps.

    Parameters
    ----------
    full : int
        The layer's width at rate 1.
    rate : float | Fraction
        The model's rate, 0 < rate <= 1. A float means the decimal number it prints as.
    heads : int
        Number of equal parts of the width, each of which is cut by itself. An embedding of an attention model with
        ``h`` heads has ``heads=h``: the result is always a multiple of ``h``.
    """
    if full < 1 or heads < 1 or full % heads:
        raise ConfigError(
            f"a width of {full} in {heads} heads is not usable: expected a positive multiple of the number of heads"
        )
    return heads * math.ceil(full // heads * exact_rate(rate))
