"""Metrics that clients report, and their means and medians over clients."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import median

Answer = tuple[float, Mapping[str, float]]
"""A client's number of examples, and its metrics."""

LOCAL_ACCURACY = "local-accuracy"
WORST_ACCURACY = "worst-accuracy"
SHARES = ("global-accuracy", LOCAL_ACCURACY, WORST_ACCURACY)
"""Metrics between 0 and 1. Any other metric may have any range: an app's ``accuracy`` may be in percent."""

_OF_ARCHITECTURE = re.compile(r".+-(global|local)-\w+$")

HEADLINE_KINDS = ("perplexity", "accuracy", "loss")
"""Suffixes of headline metrics. Models and runs are compared by the first of these kinds that a run reports.

Perplexity comes first: only language models have it, and they have an accuracy too.
"""


def split_metric(key: str) -> tuple[str, float | None]:
    """Split a key such as ``accuracy/0.5`` into metric and rate; the rate is None if the key names no rate."""
    metric, _, text = key.rpartition("/")
    try:
        rate = float(text)
    except ValueError:
        return key, None
    return (metric, rate) if metric and 0 < rate <= 1 and f"{metric}/{rate}" == key else (key, None)


def split_metrics(
    metrics: Mapping[str, float], rates: Collection[float], plain: float | None
) -> dict[float | None, dict[str, float]]:
    """Group metrics by the rate in their keys: ``accuracy/0.5`` becomes ``accuracy`` in the group of rate 0.5.

    A metric whose key names none of ``rates`` keeps its whole key, and is in the group of ``plain``: a rate, or None
    for the global model.
    """
    by_rate: dict[float | None, dict[str, float]] = {}
    for key, value in metrics.items():
        metric, rate = split_metric(key)
        if rate in rates:
            by_rate.setdefault(rate, {})[metric] = value
        else:  # a user's metric, such as ap/0.5, may look like the metric of a rate
            by_rate.setdefault(plain, {})[key] = value
    return by_rate


def minority_headlines(answers: Sequence[Answer]) -> set[str]:
    """Return the headline metrics (accuracy, loss, perplexity) that fewer than half of the clients report.

    Clients without examples do not count. Metrics of one architecture, such as ``cnn-local-accuracy``, are left out.
    """
    reported = Counter(name for number, metrics in answers if number > 0 for name in metrics)
    clients = sum(number > 0 for number, _ in answers)
    headlines = {name for name in reported if name.endswith(HEADLINE_KINDS) and not _OF_ARCHITECTURE.match(name)}
    return {name for name in headlines if 2 * reported[name] < clients}


def is_share(key: str) -> bool:
    """Whether a metric is one of ``SHARES``. A rate in its key, and a prefix up to a slash, are ignored."""
    return split_metric(key)[0].rpartition("/")[2] in SHARES


def weighted_means(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the mean of each metric over clients, weighted by examples; NaN if all its values are NaN."""
    return {
        key: math.fsum(number * value for number, value in pairs) / math.fsum(number for number, _ in pairs)
        for key, pairs in values_by_metric(answers).items()
    }


def medians(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the median of each metric over the clients with examples."""
    return {key: median(value for _, value in pairs) for key, pairs in values_by_metric(answers).items()}


def majority_means(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the weighted means of all metrics except ``minority_headlines``."""
    dropped = minority_headlines(answers)  # otherwise, one client could choose the metric that compares models
    return {name: mean for name, mean in weighted_means(answers).items() if name not in dropped}


def values_by_metric(answers: Sequence[Answer]) -> dict[str, list[tuple[float, float]]]:
    """Return, by metric, pairs (examples, value) of the clients with examples.

    NaN is left out, unless all values of the metric are NaN.
    """
    by_metric: dict[str, list[tuple[float, float]]] = {}
    for number, metrics in answers:
        for key in metrics if number > 0 else ():
            by_metric.setdefault(key, []).append((number, metrics[key]))
    return {key: [pair for pair in pairs if not math.isnan(pair[1])] or pairs for key, pairs in by_metric.items()}
