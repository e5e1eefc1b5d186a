"""Mean, standard deviation and intervals over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit  # type: ignore[import-untyped]

FEWEST = 3
"""Seeds from which on an interval is given; that of two is wider than any use of it."""

Interval = tuple[float, float]

ANYTHING: Interval = (-math.inf, math.inf)
PERCENT: Interval = (0.0, 100.0)
PERPLEXITY: Interval = (1.0, math.inf)


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
    possible
        What such a value can be; no interval goes beyond.
    """

    number: int
    mean: float
    deviation: float | None = None
    half_width: float | None = None
    possible: Interval = ANYTHING

    @property
    def interval(self) -> Interval | None:
        """The ends of the 95 % interval of the mean."""
        return None if self.half_width is None else self._around(self.half_width)

    @property
    def prediction(self) -> Interval | None:
        """The ends of the 95 % prediction interval: of where one more value of the same kind lies."""
        return None if self.half_width is None else self._around(self.half_width * math.sqrt(self.number + 1))

    def _around(self, half_width: float) -> Interval:
        least, most = self.possible
        return max(self.mean - half_width, least), min(self.mean + half_width, most)


def summarise(values: Sequence[float], possible: Interval = ANYTHING) -> Summary:
    """Return mean, standard deviation and intervals of one or more values."""
    number = len(values)
    mean = math.fsum(values) / number
    if number < 2:
        return Summary(number, mean, possible=possible)
    deviation = statistics.stdev(values)
    quantile = float(stdtrit(number - 1, 0.975))
    half_width = quantile * deviation / math.sqrt(number) if number >= FEWEST else None
    return Summary(number, mean, deviation, half_width, possible)


def half_width_of_difference(one: Summary, two: Summary) -> float | None:
    """Return half the width of the 95 % interval of a difference of means, by Welch; None with too few values."""
    if one.deviation is None or two.deviation is None or min(one.number, two.number) < FEWEST:
        return None
    shares = [own.deviation**2 / own.number for own in (one, two) if own.deviation is not None]
    if not any(shares):
        return 0.0
    freedom = sum(shares) ** 2 / sum(share**2 / (own.number - 1) for share, own in zip(shares, (one, two), strict=True))
    return float(stdtrit(freedom, 0.975)) * math.sqrt(sum(shares))
