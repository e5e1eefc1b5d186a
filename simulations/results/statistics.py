"""Means and intervals over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import nctdtrinc, stdtrit  # type: ignore[import-untyped]

from heterofl_flwr.runs.metrics import deviation as deviation_of, mean as mean_of

FEWEST = 3
"""Fewest seeds for an interval; with two seeds it would be too wide to be useful."""

Interval = tuple[float, float]

ANYTHING: Interval = (-math.inf, math.inf)
PERCENT: Interval = (0.0, 100.0)
PERPLEXITY: Interval = (1.0, math.inf)


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean, standard deviation and interval of some values."""

    number: int
    mean: float
    deviation: float | None = None  # standard deviation; None for a single value
    half_width: float | None = None  # half of the 95 % interval of the mean (t distribution); None below FEWEST values
    detectable: float | None = None  # smallest mean that is detected to differ from 0 with 80 % power
    possible: Interval = ANYTHING  # range of possible values, to which intervals are clipped

    @property
    def interval(self) -> Interval | None:
        """Ends of the 95 % interval of the mean; None with too few values."""
        return None if self.half_width is None else self._around(self.half_width)

    @property
    def ends(self) -> Interval:
        """Ends of an error bar: those of ``interval``; with one or two values, the least and the greatest value."""
        return self.interval or self._around((self.deviation or 0.0) / math.sqrt(2))

    @property
    def prediction(self) -> Interval | None:
        """Ends of the 95 % prediction interval, in which one more value would lie; None with too few values."""
        return None if self.half_width is None else self._around(self.half_width * math.sqrt(self.number + 1))

    def _around(self, half_width: float) -> Interval:
        least, most = self.possible
        return max(self.mean - half_width, least), min(self.mean + half_width, most)


def summarise(values: Sequence[float], possible: Interval = ANYTHING) -> Summary:
    """Return the mean, standard deviation and intervals of one or more values; NaN if values are not finite."""
    number, deviation = len(values), deviation_of(values)
    mean = round(mean_of(values) or 0.0, 9)  # so that equal values round alike, from fractions and from percent
    if deviation is None or number < FEWEST:
        return Summary(number, mean, deviation, possible=possible)
    error = deviation / math.sqrt(number)
    quantile = float(stdtrit(number - 1, 0.975))
    # The mean over its error follows a noncentral t distribution, which passes the quantile in 80 of 100 cases.
    detectable = float(nctdtrinc(number - 1, 0.2, quantile)) * error
    return Summary(number, mean, deviation, quantile * error, detectable, possible)
