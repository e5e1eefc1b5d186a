"""The options of evaluation, and the means of the clients' metrics."""

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Annotated, Literal

from pydantic import Field

from heterofl_flwr.common.options import Flag, Natural, group

Answer = tuple[float, Mapping[str, float]]
"""The examples and the metrics of a client."""

LOCAL_ACCURACY = "local-accuracy"
WORST_ACCURACY = "worst-accuracy"
SHARES = ("global-accuracy", LOCAL_ACCURACY, WORST_ACCURACY)
"""Metrics that are from 0 to 1. Others are as their app means them: its ``accuracy`` may be in percent."""


@group
class Evaluation:
    """How the clients evaluate."""

    every: Natural = 1
    """rounds from one evaluation to the next; the last round has one; 0 for none"""
    nodes: Literal["capable", "all"] = "capable"
    """capable: a client that says what it can hold, or of which the table of levels says it, gets the largest of the
    mix's models that it can hold, and its metrics are those of that level, while all others get the full model; all:
    every client gets the full model (paper)
    """
    levels: Annotated[Flag | Literal["last"], "true, false or 'last'"] = False
    """evaluate each level's own model too: each time, never, or after the last round"""
    static_norm: Flag = Field(default=True, exclude=True)
    """before an evaluation, ask the clients for static batch norm moments if the model has batch norm"""

    def due(self, server_round: int, num_rounds: int) -> bool:
        """Whether this round ends with an evaluation."""
        return self.every > 0 and (server_round % self.every == 0 or server_round == num_rounds)

    def levels_due(self, server_round: int, num_rounds: int) -> bool:
        """Whether the evaluation of this round is one of each level's own model too."""
        return server_round == num_rounds if self.levels == "last" else self.levels


def split_metric(key: str) -> tuple[str, float | None]:
    """Return the metric and the rate of a key such as ``accuracy/0.5``; None where the key names no rate."""
    metric, _, text = key.rpartition("/")
    try:
        rate = float(text)
    except ValueError:
        return key, None
    return (metric, rate) if metric and 0 < rate <= 1 and f"{metric}/{rate}" == key else (key, None)


def split_metrics(
    metrics: Mapping[str, float], rates: Collection[float], plain: float | None
) -> dict[float | None, dict[str, float]]:
    """Return metrics by the rate that their keys name, of these rates; ``plain`` is the rate of all other metrics."""
    found: dict[float | None, dict[str, float]] = {}
    for key, value in metrics.items():
        metric, rate = split_metric(key)
        if rate in rates:
            found.setdefault(rate, {})[metric] = value
        else:  # a metric of the user's, such as ap/0.5, may look like one of a rate
            found.setdefault(plain, {})[key] = value
    return found


def is_share(key: str) -> bool:
    """Whether a metric, also of a level, is one of ``SHARES``."""
    return split_metric(key)[0].rpartition("/")[2] in SHARES


def weighted_means(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the mean of each metric over the clients that report it, weighted by examples.

    NaN counts in no mean, so that one client cannot spoil that of all; where there is nothing else, it is the mean.
    """
    return {
        key: math.fsum(number * value for number, value in pairs) / math.fsum(number for number, _ in pairs)
        for key, pairs in _by_metric(answers).items()
    }


def means_and_worst(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the weighted means, and the accuracy of the worst client."""
    own = [metrics[LOCAL_ACCURACY] for number, metrics in answers if number and LOCAL_ACCURACY in metrics]
    own = [accuracy for accuracy in own if not math.isnan(accuracy)]
    return weighted_means(answers) | ({WORST_ACCURACY: min(own)} if own else {})


def medians(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the median of each metric over the clients that ``weighted_means`` counts, each of them once."""
    return {key: median(value for _, value in pairs) for key, pairs in _by_metric(answers).items()}


def _by_metric(answers: Sequence[Answer]) -> dict[str, list[tuple[float, float]]]:
    """Return examples and values by metric, of clients with examples: NaN only where all values are."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number, own in answers:
        for key in own if number > 0 else ():
            found.setdefault(key, []).append((number, own[key]))
    return {key: [one for one in pairs if not math.isnan(one[1])] or pairs for key, pairs in found.items()}
