"""Mean, standard deviation and interval over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit  # type: ignore[import-untyped]

FEWEST = 3
"""Seeds from which on an interval is given; that of two is wider than any use of it."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What some values amount to.

    Attributes
    ----------
    number, mean
        Number of values, and their mean.
    deviation
        Standard deviation of the values, from two on.
    half_width
        Half the width of the 95 % interval of the mean by the t distribution, from ``FEWEST`` on.
    """

    number: int
    mean: float
    deviation: float | None = None
    half_width: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the interval."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


def summarise(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and interval of one or more values."""
    number = len(values)
    mean = math.fsum(values) / number
    if number < 2:
        return Summary(number, mean)
    deviation = statistics.stdev(values)
    quantile = float(stdtrit(number - 1, 0.975))
    return Summary(number, mean, deviation, quantile * deviation / math.sqrt(number) if number >= FEWEST else None)
