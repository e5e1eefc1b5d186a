"""Means and intervals over seeds: one place for the paper's tables, for comparisons and for sweeps."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit  # type: ignore[import-untyped]

FEWEST = 3
"""Seeds from which on an interval is given; that of two is wider than any use of it."""

Interval = tuple[float, float]

ANYTHING: Interval = (-math.inf, math.inf)
SHARE: Interval = (0.0, 1.0)
PERCENT: Interval = (0.0, 100.0)
PERPLEXITY: Interval = (1.0, math.inf)


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean, standard deviation and interval of some values."""

    number: int
    mean: float
    deviation: float | None = None  # from two values on
    half_width: float | None = None  # of the 95 % interval of the mean by the t distribution, from FEWEST values on
    possible: Interval = ANYTHING  # what such a value can be; no interval goes beyond

    @property
    def interval(self) -> Interval | None:
        """The ends of the 95 % interval of the mean."""
        return None if self.half_width is None else self._around(self.half_width)

    @property
    def ends(self) -> Interval:
        """The ends of that interval; the mean twice where there is none."""
        return self.interval or (self.mean, self.mean)

    @property
    def prediction(self) -> Interval | None:
        """The ends of the 95 % prediction interval: of where one more value of the same kind lies."""
        return None if self.half_width is None else self._around(self.half_width * math.sqrt(self.number + 1))

    def _around(self, half_width: float) -> Interval:
        least, most = self.possible
        return max(self.mean - half_width, least), min(self.mean + half_width, most)


def summarise(values: Sequence[float], possible: Interval = ANYTHING) -> Summary:
    """Return mean, standard deviation and intervals of one or more values; NaN where they diverged."""
    number = len(values)
    mean = _total(values) / number
    if number < 2:
        return Summary(number, mean, possible=possible)
    deviation = statistics.stdev(values) if math.isfinite(mean) else math.nan
    quantile = float(stdtrit(number - 1, 0.975))
    half_width = quantile * deviation / math.sqrt(number) if number >= FEWEST else None
    return Summary(number, mean, deviation, half_width, possible)


def contrast(terms: Sequence[tuple[float, Summary]]) -> tuple[float, float | None]:
    """Return a weighted sum of means, and half the width of its 95 % interval; None with too few values.

    With weights 1 and -1 it is the difference of two means, and its interval that of Welch.
    """
    value = _total([weight * own.mean for weight, own in terms])
    if min(own.number for _, own in terms) < FEWEST:
        return value, None
    shares = [(weight**2 * (own.deviation or 0.0) ** 2 / own.number, own.number - 1) for weight, own in terms]
    variance = math.fsum(share for share, _ in shares)
    if not variance:
        return value, 0.0
    freedom = variance**2 / math.fsum(share**2 / number for share, number in shares)
    return value, float(stdtrit(freedom, 0.975)) * math.sqrt(variance)


def _total(values: Sequence[float]) -> float:
    """Return the sum; ``fsum`` raises where infinities of both signs meet."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
