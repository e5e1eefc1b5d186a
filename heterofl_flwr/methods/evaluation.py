"""What is evaluated, on which clients, and how often; and what the clients' answers add up to."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from heterofl_flwr.core.levels import level_name
from heterofl_flwr.errors import ConfigError

Answers = Mapping[int, tuple[int, Mapping[str, float]]]
"""By node, the examples and the metrics of an evaluation."""

LOCAL_ACCURACY = "local-accuracy"
WORST_ACCURACY = "worst-accuracy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How the clients evaluate.

    Attributes
    ----------
    every
        Evaluate after every so many rounds, and after the last; 0 for never.
    nodes
        ``all``: every client gets the full model, as in the paper; ``capable``: only those that can hold it.
    levels
        Also evaluate each level's own model: True, False, or ``last`` for the last round alone.
    static_norm
        Before an evaluation, query the clients for static batch norm moments if the model has batch norm.
    """

    every: int = 1
    nodes: Literal["all", "capable"] = "all"
    levels: bool | Literal["last"] = False
    static_norm: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.every < 0:
            raise ConfigError(f"evaluation.every is {self.every}; expected a whole number from 0 up")
        if self.nodes not in ("all", "capable"):
            raise ConfigError(f"evaluation.nodes is {self.nodes!r}; expected all or capable")
        if self.levels not in (True, False, "last"):
            raise ConfigError(f"evaluation.levels is {self.levels!r}; expected True, False or 'last'")

    def due(self, server_round: int, num_rounds: int) -> bool:
        """Whether this round ends with an evaluation."""
        return self.every > 0 and (server_round % self.every == 0 or server_round == num_rounds)

    def levels_due(self, server_round: int, num_rounds: int) -> bool:
        """Whether the evaluation of this round is one of each level's own model too."""
        return server_round == num_rounds if self.levels == "last" else self.levels


def level_metric(metric: str, rate: float) -> str:
    """Return the key under which a client reports a metric of one level's own model."""
    return f"{metric}/{rate}"


def split_metric(key: str) -> tuple[str, float | None]:
    """Return the metric and the rate that ``level_metric`` joined; None where the key is of no level."""
    metric, _, text = key.rpartition("/")
    try:
        rate = float(text)
    except ValueError:
        return key, None
    return (metric, rate) if metric and 0 < rate <= 1 and level_metric(metric, rate) == key else (key, None)


def of_level(metrics: Mapping[str, float], rate: float) -> dict[str, float]:
    """Return metrics as those of one level's own model, for a client that was not asked about the global one."""
    return {level_metric(key, rate) if split_metric(key)[1] is None else key: metrics[key] for key in metrics}


def limited(
    rates_of: Mapping[int, Sequence[float]], known: Mapping[int, Collection[float]]
) -> dict[int, tuple[float, ...]]:
    """Return, of each client's rates, those that are known for it; a client for which none is left is left out."""
    left = {node_id: tuple(rate for rate in own if rate in known[node_id]) for node_id, own in rates_of.items()}
    return {node_id: own for node_id, own in left.items() if own}


def of_rates(metrics: Mapping[str, float], rates: Sequence[float]) -> dict[str, float]:
    """Return a client's metrics without those of levels that are none of the run."""
    return {key: value for key, value in metrics.items() if split_metric(key)[1] in (None, *rates)}


def summarise(answers: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return the means over clients, weighted by examples, and the accuracy of the worst client."""
    plain = [
        (float(number), {key: value for key, value in own.items() if split_metric(key)[1] is None})
        for number, own in answers
    ]
    means = weighted_means(plain)
    worst = [own[LOCAL_ACCURACY] for number, own in plain if number and LOCAL_ACCURACY in own]
    worst = [accuracy for accuracy in worst if not math.isnan(accuracy)]
    return {**means, WORST_ACCURACY: min(worst)} if worst else means


def summarise_levels(answers: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the means of each level's own model, by the level's name."""
    by_level: dict[str, dict[str, float]] = {}
    for key, value in weighted_means([(float(number), own) for number, own in answers]).items():
        metric, rate = split_metric(key)
        if rate is not None:
            by_level.setdefault(level_name(rate), {})[metric] = value
    return by_level


def summaries(
    answers: Sequence[tuple[int, Mapping[str, float]]],
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return both summaries."""
    return summarise(answers), summarise_levels(answers)


def weighted_means(metrics: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Return the mean of each metric over the clients that report it, weighted.

    NaN counts in no mean, so that one client cannot spoil that of all; where there is nothing else, it is the mean.
    """
    keys = dict.fromkeys(key for _, own in metrics for key in own)
    means = {}
    for key in keys:
        said = [(weight, own[key]) for weight, own in metrics if key in own and weight > 0]
        usable = [(weight, value) for weight, value in said if not math.isnan(value)]
        if usable:
            means[key] = math.fsum(weight * value for weight, value in usable) / math.fsum(w for w, _ in usable)
        elif said:
            means[key] = math.nan
    return means
