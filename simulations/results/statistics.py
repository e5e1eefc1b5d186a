"""Means and intervals over seeds, and their text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import nctdtrinc, stdtrit  # type: ignore[import-untyped]

from heterofl_flwr.core.formatting import NOTHING
from heterofl_flwr.runs.metrics import deviation as deviation_of, mean as mean_of

FEWEST = 3
"""Fewest seeds for an interval; with two seeds it would be too wide to be useful."""

Interval = tuple[float, float]

ANYTHING: Interval = (-math.inf, math.inf)
PERCENT: Interval = (0.0, 100.0)
PERPLEXITY: Interval = (1.0, math.inf)


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean, standard deviation and intervals of some values."""

    number: int
    mean: float
    ends: Interval  # of an error bar: those of ``interval``; with one or two values, the least and the greatest value
    deviation: float | None = None  # standard deviation; None for a single value
    interval: Interval | None = None  # 95 % interval of the mean (t distribution); None below FEWEST values
    prediction: Interval | None = None  # 95 % prediction interval, in which one more value would lie; as ``interval``
    detectable: float | None = None  # smallest mean that is detected to differ from 0 with 80 % power


def summarise(values: Sequence[float], possible: Interval = ANYTHING) -> Summary:
    """Return the mean, standard deviation and intervals of one or more values; NaN if values are not finite.

    Intervals are clipped to the range of possible values.
    """
    number, deviation = len(values), deviation_of(values)
    mean = round(mean_of(values) or 0.0, 9)  # so that equal values round alike, from fractions and from percent

    def around(half_width: float) -> Interval:
        return max(mean - half_width, possible[0]), min(mean + half_width, possible[1])

    if deviation is None or number < FEWEST:
        return Summary(number, mean, around((deviation or 0.0) / math.sqrt(2)), deviation)
    error = deviation / math.sqrt(number)
    quantile = float(stdtrit(number - 1, 0.975))
    # The mean over its error follows a noncentral t distribution, which passes the quantile in 80 of 100 cases.
    detectable = float(nctdtrinc(number - 1, 0.2, quantile)) * error
    interval, prediction = around(quantile * error), around(quantile * error * math.sqrt(number + 1))
    return Summary(number, mean, interval, deviation, interval, prediction, detectable)


def show_summary(summary: Summary) -> str:
    """Return a mean with its standard deviation and interval as text, if there are enough values for these."""
    return f"{show_spread(summary)} {show_interval(summary.interval)}" if summary.interval else show_spread(summary)


def show_spread(summary: Summary) -> str:
    """Return a mean with its standard deviation, if there are two values or more."""
    return f"{summary.mean:.2f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.2f}")


def show_interval(interval: Interval | None) -> str:
    """Return an interval as text."""
    return f"[{', '.join(f'{end:.2f}' for end in interval)}]" if interval else NOTHING


def show_difference(summary: Summary, digits: int = 2) -> str:
    """Return a mean difference with its 95 % interval as text, if there are enough values for this."""
    interval = f" [{', '.join(f'{end:+.{digits}f}' for end in summary.interval)}]" if summary.interval else ""
    return f"{summary.mean:+.{digits}f}{interval}"
