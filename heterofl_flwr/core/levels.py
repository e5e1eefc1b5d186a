"""Rates, the letters of the paper's levels, and widths of layers."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from reprlib import repr as shown
from types import MappingProxyType

from heterofl_flwr.common.errors import ConfigError

_NUMBER = re.compile(r"[+-]?(\d{1,9}/\d{1,9}|(\d{1,40}\.?\d{0,40}|\.\d{1,40})(e[+-]?\d{1,3})?)", re.IGNORECASE)


def exact_fraction(number: float | str) -> Fraction:
    """Return the fraction that a number stands for: 3/10 for 0.3, and 5/6 for 0.8333333333333334 (the float 5 / 6)."""
    decimal = Fraction(str(number))
    simple = decimal.limit_denominator(1000)
    return simple if float(simple) == float(decimal) else decimal


def exact_rate(rate: float | str | Fraction) -> Fraction:
    """Return a rate as a fraction; raise ``ConfigError`` if it is not a number in (0, 1]."""
    text = str(rate).strip()
    try:
        exact = rate if isinstance(rate, Fraction) else exact_fraction(text if _NUMBER.fullmatch(text) else "none")
    except (ValueError, ArithmeticError):
        raise ConfigError(f"{shown(rate)} is no rate: expected a number above 0 and up to 1") from None
    if exact > 1 or not float(exact) > 0:  # as a float it must be above 0 too
        raise ConfigError(f"a rate of {rate} is not usable: expected a number above 0 and up to 1")
    return exact


LEVELS: Mapping[str, float] = MappingProxyType({"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.125, "e": 0.0625})
"""Rates of the paper's levels; each is half of the previous one (section 3.1)."""


def rate_of(level: str | float) -> float:
    """Return the rate of ``level``: a letter from a to e, or the rate itself as a number or text."""
    if isinstance(level, str) and level in LEVELS:
        return LEVELS[level]
    try:
        return float(exact_rate(level))
    except ConfigError:
        rates = ", ".join(f"{letter} ({rate:g})" for letter, rate in LEVELS.items())
        raise ConfigError(
            f"{shown(level)} is no level: expected one of {rates} or a rate above 0 and up to 1"
        ) from None


def level_name(rate: float) -> str:
    """Return the letter of a rate, or the rate as text if no level has it."""
    return next((letter for letter, value in LEVELS.items() if value == rate), format(Decimal(str(rate)), "f"))


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
