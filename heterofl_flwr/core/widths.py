"""Rounding of layer widths."""

import math
from fractions import Fraction
from numbers import Real

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import exact_rate


def width(size: int, rate: float | Fraction, heads: int = 1) -> int:
    """Return ``size * rate``, rounded up: the number of channels of a layer at a rate.

    Parameters
    ----------
    size : int
        The layer's width at rate 1.
    rate : float | Fraction
        The model's rate, 0 < rate <= 1. A float stands for the simple fraction or the decimal
        number that it is nearest to, such as 5/6 or 0.3.
    heads : int
        Number of equal parts of the width, such as attention heads. Each part is rounded up, so the result is a
        multiple of ``heads``.
    """
    if not (isinstance(size, Real) and isinstance(heads, Real)) or size < 1 or heads < 1 or size % heads:
        raise ConfigError(
            f"a width of {size!r} in {heads!r} heads is not usable: expected a positive multiple of the number of heads"
        )
    return heads * math.ceil(size // heads * exact_rate(rate))
