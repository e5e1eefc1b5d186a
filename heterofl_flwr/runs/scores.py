"""Final and best values of the metrics in a history, and its main metric."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from heterofl_flwr.federation.client_metrics import HEADLINE_KINDS, WORST_ACCURACY, is_share
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.runs.metrics import check_known

SCOPES = ("global", "local", "worst")
USUAL = ("coverage", *(f"{scope}-{kind}" for scope in SCOPES for kind in HEADLINE_KINDS))
"""Names of this package's own metrics."""

LOWER_IS_BETTER = ("loss", "perplexity", "error", "mse", "mae", "mape", "nll")
"""Suffixes of metrics whose best value is the smallest."""

UNKNOWN = "accuracy"  # the kind for a run without any headline metric


class Score(NamedTuple):
    """Final and best value of a metric, and the round of the best value."""

    name: str
    statistic: str  # statistic over clients that compares rounds: ``mean`` or ``median``; '' for the server's metrics
    finals: Mapping[str, float]  # final value of each statistic
    best: float | None  # None if all values come from too few clients, because such values are never the best
    best_round: int | None
    final_round: int  # round of the final value
    partial: bool  # whether the final value comes from too few clients
    client: int | None  # partition of the worst client, for the worst accuracy; else None

    @property
    def final(self) -> float:
        """Final value: the mean or median over clients, or the server's measurement."""
        return self.finals[self.statistic]

    @property
    def label(self) -> str:
        """Name of the metric, with ``(median)`` after a median over clients."""
        return f"{self.name} (median)" if self.statistic == "median" else self.name


def mode_of(name: str) -> str:
    """Return ``min`` for a metric of ``LOWER_IS_BETTER``, ``max`` for any other metric."""
    return "min" if name.endswith(LOWER_IS_BETTER) else "max"


def is_better(value: float, than: float | None, mode: str) -> bool:
    """Whether ``value`` is better than ``than``; NaN and None are worst."""
    if math.isnan(value):
        return False
    return than is None or math.isnan(than) or (value > than if mode == "max" else value < than)


def headline_kind(records: Sequence[RoundRecord]) -> str:
    """Return the main kind of metric: the first of perplexity, accuracy and loss that is recorded, else accuracy."""
    metrics = [values for record in records for values in (record.evaluate, *record.evaluate_by_level.values())]
    return next(
        (kind for kind in HEADLINE_KINDS if any(name.endswith(kind) for values in metrics for name in values)), UNKNOWN
    )


def find_metric(values: Mapping[str, float], kind: str) -> str:
    """Return the name of a metric of ``kind``, preferably with a scope, such as ``local-loss``; '' if there is none."""
    names = [*(f"{scope}-{kind}" for scope in SCOPES), kind, *(name for name in values if name.endswith(kind))]
    return next((name for name in names if name in values), "")


def headline(records: Sequence[RoundRecord]) -> str:
    """Return the name of the main metric in the records: a perplexity, else an accuracy, else a loss, else ''."""
    names = (find_metric(record.evaluate, kind) for kind in HEADLINE_KINDS for record in records)
    return next(filter(None, names), "")


def pick_metric(values: Mapping[str, float], kind: str) -> float | None:
    """Return the value of the metric that ``find_metric`` chooses; None if there is no such metric."""
    return values.get(find_metric(values, kind))


def seconds_to(records: Sequence[RoundRecord], name: str, value: float) -> float | None:
    """Return the simulated seconds until a metric first reached a target; None if it never did.

    Raise ``ConfigError`` if no record has the metric.

    Parameters
    ----------
    records : Sequence[RoundRecord]
        The history.
    name : str
        Name of the metric, such as ``global-accuracy``.
    value : float
        The target: a lower bound or, for a metric whose lowest value is the best, an upper bound.
    """
    check_known([name], [record.evaluate for record in records])
    passed = accumulate(record.simulated_seconds for record in records)
    for record, seconds in zip(records, passed, strict=True):
        metric = record.comparable.get(name, math.nan)
        if metric == value or is_better(metric, value, mode_of(name)):
            return seconds
    return None


def scores(records: Sequence[RoundRecord]) -> list[Score]:
    """Return the final and best values of each metric, in the order of appearance."""
    results, comparable = [], [(record.server_round, record.comparable) for record in records]
    for name in dict.fromkeys(name for record in records for name in record.evaluate):
        final = next(record for record in reversed(records) if name in record.evaluate)
        best, best_round = None, None
        for server_round, metrics in comparable:
            value = metrics.get(name)
            # The first value is the best until a better one follows, also if it is NaN.
            if value is not None and (best is None or is_better(value, best, mode_of(name))):
                best, best_round = value, server_round
        worst = final.worst_client if name == WORST_ACCURACY else None
        finals, statistic = {"": final.evaluate[name]}, ""
        if name in final.evaluate_medians:
            finals = {"mean": final.evaluate[name], "median": final.evaluate_medians[name]}
            statistic = "mean" if is_share(name) else "median"
        partial = name in final.partial
        results.append(Score(name, statistic, finals, best, best_round, final.server_round, partial, worst))
    return results
