"""The metrics of a history: the headline, which way is better, final and best values, and names for trackers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from heterofl_flwr.federation.evaluation import WORST_ACCURACY
from heterofl_flwr.federation.records import RoundRecord

SCOPES = ("global", "local", "worst")
KINDS = ("accuracy", "perplexity", "loss")


@dataclass(frozen=True, slots=True)
class Score:
    """One metric over a run: its final value, its best one and the round of that.

    ``partial`` says that the final value comes from too few clients. Such values are never the best, so there may be no
    best. ``median`` is that of the final value over clients, by which rounds are compared where nothing bounds what one
    client reports. ``client`` is the partition of the worst client.
    """

    name: str
    final: float
    best: float | None
    best_round: int | None
    partial: bool
    median: float | None
    client: int | None


def mode_of(name: str) -> str:
    """Return ``min`` for losses and perplexities, ``max`` for everything else."""
    return "min" if name.endswith(("loss", "perplexity")) else "max"


def is_better(value: float, than: float | None, mode: str) -> bool:
    """Whether a value beats another; a value that is not a number beats nothing."""
    if math.isnan(value):
        return False
    return than is None or math.isnan(than) or (value > than if mode == "max" else value < than)


def headline_kind(records: Sequence[RoundRecord]) -> str:
    """Return the kind of metric by which the run is compared: accuracy, else perplexity, else loss."""
    found = [own for record in records for own in (record.evaluate, *record.evaluate_by_level.values())]
    return next((kind for kind in KINDS if any(name.endswith(kind) for own in found for name in own)), KINDS[0])


def headline(record: RoundRecord) -> str | None:
    """Return the name of the metric by which global models are compared, if the round was evaluated."""
    names = [f"{scope}-{kind}" for kind in KINDS for scope in SCOPES]
    names += [name for kind in KINDS for name in record.evaluate if name.endswith(kind)]
    return next((name for name in names if name in record.evaluate), None)


def pick_metric(values: Mapping[str, float], kind: str) -> float | None:
    """Return a level's metric of a kind, under whichever scope it is given."""
    names = (*(f"{scope}-{kind}" for scope in SCOPES), kind)
    found = next((name for name in names if name in values), None)
    return values[found] if found else next((values[name] for name in values if name.endswith(kind)), None)


def families(records: Sequence[RoundRecord], kind: str) -> dict[str, str]:
    """Return, by family (``Hybrid``), the name of its model's metric of a kind."""
    names = dict.fromkeys(name for record in records for name in record.evaluate)
    ends = f"/global-{kind}"
    return {name.removesuffix(ends): name for name in names if name.endswith(ends)}


def points(
    records: Sequence[RoundRecord], value_of: Callable[[RoundRecord], float | None]
) -> tuple[list[int], list[float]]:
    """Return the rounds that have a value, and the values."""
    known = [(record.server_round, value) for record in records if (value := value_of(record)) is not None]
    return [server_round for server_round, _ in known], [value for _, value in known]


def seconds_to(records: Sequence[RoundRecord], name: str, value: float) -> float | None:
    """Return after how much simulated time a metric of evaluation was first as good as a value; None if it never was.

    Parameters
    ----------
    records : Sequence[RoundRecord]
        The history.
    name : str
        The metric, such as ``global-accuracy``.
    value : float
        The target: that or more, or, for a loss or a perplexity, that or less.
    """
    passed = accumulate(record.simulated_seconds for record in records)
    for record, seconds in zip(records, passed, strict=True):
        found = record.comparable.get(name, math.nan)
        if found == value or is_better(found, value, mode_of(name)):
            return seconds
    return None


def scores(records: Sequence[RoundRecord]) -> list[Score]:
    """Return final and best of every metric of evaluation, in the order in which they first appear."""
    found = []
    for name in dict.fromkeys(name for record in records for name in record.evaluate):
        last = next(record for record in reversed(records) if name in record.evaluate)
        best: RoundRecord | None = None
        for record in records:
            value = record.comparable.get(name)
            # The first value stands until a better one comes, even where it is not a number.
            if value is not None and (best is None or is_better(value, best.comparable[name], mode_of(name))):
                best = record
        found.append(
            Score(
                name,
                final=last.evaluate[name],
                best=best.comparable[name] if best else None,
                best_round=best.server_round if best else None,
                partial=name in last.partial,
                median=last.evaluate_medians.get(name),
                client=last.worst_client if name == WORST_ACCURACY else None,
            )
        )
    return found


def scalars(record: RoundRecord) -> dict[str, float]:
    """Return all numbers of a record under names such as ``evaluate/a/accuracy``, for trackers."""
    named = {f"evaluate/{name}": value for name, value in record.evaluate.items()}
    named |= {f"train/{name}": value for name, value in record.train.items()}
    for group, by_level in (("evaluate", record.evaluate_by_level), ("train", record.train_by_level)):
        named |= {f"{group}/{level}/{name}": value for level, own in by_level.items() for name, value in own.items()}
    if record.simulated_seconds or record.joules:
        named |= {"round/simulated-seconds": record.simulated_seconds, "round/joules-estimate": record.joules}
    if record.evaluate_asked:
        named |= {
            "round/evaluation-asked": float(record.evaluate_asked),
            "round/evaluation-answers": float(record.evaluate_answers),
            "round/evaluation-partial": float(record.few_answered),
        }
    return named | {
        "round/seconds": record.seconds,
        "round/learning-rate": record.learning_rate,
        "round/clients": float(len(record.rates)),
        "round/failures": float(len(record.failures)),
        "round/bytes-down": float(record.bytes_down),
        "round/bytes-up": float(record.bytes_up),
    }
