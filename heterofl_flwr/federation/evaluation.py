"""What is evaluated, on which clients, and how often; and what the clients' answers add up to."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, median_low
from typing import Literal, get_args

from heterofl_flwr.core.levels import level_name
from heterofl_flwr.errors import check_fields

Answer = tuple[float, Mapping[str, float]]
"""The examples and the metrics of a client."""

Answers = Mapping[int, Answer]
"""By node, what clients answered."""

Summary = Callable[[Sequence[Answer]], dict[str, float]]
"""What makes one value of each metric of what clients answered."""

MomentsMerge = Literal["auto", "mean", "robust"]

LOCAL_ACCURACY = "local-accuracy"
WORST_ACCURACY = "worst-accuracy"
SHARES = ("global-accuracy", LOCAL_ACCURACY, WORST_ACCURACY)
"""Metrics that are from 0 to 1. Others are as their app means them: its ``accuracy`` may be in percent."""


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
    moments_merge
        ``mean``: each client's moments count as it sends them, as in the paper; ``robust``: outliers are clipped to the
        median over clients (``heterofl_flwr.nn.moments.sum_robust``). ``auto``: robust where answers come from other
        machines, through a SuperLink, and there is no noise on them; mean in simulations.
    """

    every: int = 1
    nodes: Literal["all", "capable"] = "all"
    levels: bool | Literal["last"] = False
    static_norm: bool = True
    moments_merge: MomentsMerge = "auto"

    def __post_init__(self) -> None:
        """Validate the options, all at once."""
        check_fields(
            self,
            (
                ("every", self.every >= 0, "a whole number from 0 up"),
                ("nodes", self.nodes in ("all", "capable"), "all or capable"),
                ("levels", self.levels in (True, False, "last"), "True, False or 'last'"),
                ("moments_merge", self.moments_merge in get_args(MomentsMerge), "auto, mean or robust"),
            ),
            "evaluation: ",
        )

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


def is_share(key: str) -> bool:
    """Whether a metric, also of a level or of a family, is one of ``SHARES``."""
    return split_metric(key)[0].rpartition("/")[2] in SHARES


def of_level(metrics: Mapping[str, float], rate: float) -> dict[str, float]:
    """Return metrics as those of one level's own model, for a client that was not asked about the global one."""
    return {level_metric(key, rate) if split_metric(key)[1] is None else key: metrics[key] for key in metrics}


def of_rates(metrics: Mapping[str, float], rates: Sequence[float]) -> dict[str, float]:
    """Return a client's metrics without those of levels that are none of the run."""
    return {key: value for key, value in metrics.items() if split_metric(key)[1] in (None, *rates)}


def weighted_means(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the mean of each metric over the clients that report it, weighted by examples.

    NaN counts in no mean, so that one client cannot spoil that of all; where there is nothing else, it is the mean.
    """
    return {
        key: math.fsum(number * value for number, value in pairs) / math.fsum(number for number, _ in pairs)
        for key, pairs in _by_metric(answers).items()
    }


def medians(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the median of each metric over the clients that ``weighted_means`` counts, each of them once."""
    return {key: median(value for _, value in pairs) for key, pairs in _by_metric(answers).items()}


def heaviest(numbers: Iterable[float], ratio: float) -> float:
    """Return how many examples a client counts at most in means: so many times those of the median client.

    Of an even number of clients it is the lower one in the middle, or one of two would set its own bound. With a ratio
    of c, one of n clients then has a share of c / (c + n // 2) of a mean at most.
    """
    known = [number for number in numbers if number > 0]
    return ratio * median_low(known) if ratio and known else math.inf


def _by_metric(answers: Sequence[Answer]) -> dict[str, list[tuple[float, float]]]:
    """Return, for each metric that a client with examples reports, examples and values: NaN only where all are."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number, own in answers:
        for key in own if number > 0 else ():
            found.setdefault(key, []).append((number, own[key]))
    return {key: [one for one in pairs if not math.isnan(one[1])] or pairs for key, pairs in found.items()}


def summarise(answers: Sequence[Answer], summary: Summary = weighted_means) -> dict[str, float]:
    """Return the means over clients, weighted by examples, and the accuracy of the worst client."""
    plain = [
        (number, {key: value for key, value in own.items() if split_metric(key)[1] is None}) for number, own in answers
    ]
    worst = [own[LOCAL_ACCURACY] for number, own in plain if number and LOCAL_ACCURACY in own]
    worst = [accuracy for accuracy in worst if not math.isnan(accuracy)]
    return summary(plain) | ({WORST_ACCURACY: min(worst)} if worst else {})


def summarise_levels(answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Return the means of each level's own model, by the level's name."""
    by_level: dict[str, dict[str, float]] = {}
    for key, value in weighted_means(answers).items():
        metric, rate = split_metric(key)
        if rate is not None:
            by_level.setdefault(level_name(rate), {})[metric] = value
    return by_level
