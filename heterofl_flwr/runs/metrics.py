"""Metrics in a history: all numbers of a round for trackers, final values, means and standard deviations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import stdev

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.federation.round_record import RoundRecord


def points(places: Sequence[float], values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Return ``places`` and ``values`` without the pairs whose value is None."""
    pairs = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
    return [place for place, _ in pairs], [value for _, value in pairs]


def final_values(records: Sequence[RoundRecord]) -> dict[str, float]:
    """Return the last value of each metric in a history.

    Metrics are named as in ``scalars``, but without the prefix ``evaluate/``.
    """
    values: dict[str, float] = {}
    for record in records:
        values |= {name.removeprefix("evaluate/"): value for name, value in scalars(record).items()}
    return values


def partial_names(records: Sequence[RoundRecord]) -> set[str]:
    """Return the names of the metrics in ``final_values`` whose value comes from too few clients."""
    names: set[str] = set()
    for record in records:
        levels = {f"{level}/{name}" for level, metrics in record.evaluate_by_level.items() for name in metrics}
        names = names - levels - record.evaluate.keys() | {*record.partial, *(levels if record.few_answered else ())}
    return names


def mean(values: Sequence[float]) -> float | None:
    """Return the mean of values, which may be infinite or NaN. Return None if ``values`` is empty."""
    # fmean raises an error for infinities of both signs, and stdev for any value that is not finite.
    add = math.fsum if all(map(math.isfinite, values)) else sum
    return add(values) / len(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Return the standard deviation of values; None if there are fewer than two, NaN if a value is not finite."""
    if len(values) < 2:
        return None
    return stdev(values) if all(map(math.isfinite, values)) else math.nan


def check_known(names: Iterable[str], runs: Iterable[Mapping[str, float]]) -> None:
    """Raise ``ConfigError`` if ``names`` has a metric that no run has."""
    known = {name for values in runs for name in values}
    if unknown := [name for name in names if name not in known]:
        expected = f"one of {', '.join(sorted(known))}" if known else "a run with an evaluation"
        raise ConfigError(f"no run has a metric {', '.join(unknown)}; expected {expected}")


def scalars(record: RoundRecord) -> dict[str, float]:
    """Return all numbers of a round for trackers, with names such as ``evaluate/a/f1``."""
    groups = {"evaluate": record.evaluate, "train": record.train, "stages": record.stages}
    groups |= {f"evaluate/{level}": metrics for level, metrics in record.evaluate_by_level.items()}
    groups |= {f"train/{level}": metrics for level, metrics in record.train_by_level.items()}
    numbers: dict[str, float] = {}
    if record.simulated_seconds or record.joules:
        numbers |= {"simulated-seconds": record.simulated_seconds, "joules-estimate": record.joules}
    if record.evaluate_asked:
        numbers |= {"evaluation-asked": record.evaluate_asked, "evaluation-answers": record.evaluate_answers}
        numbers["evaluation-partial"] = record.few_answered
    numbers |= {
        "seconds": record.seconds,
        "learning-rate": record.learning_rate,
        "clients": len(record.rates),
        "failures": len(record.failures),
        "bytes-down": record.bytes_down,
        "bytes-up": record.bytes_up,
    }
    groups["round"] = {name: float(value) for name, value in numbers.items()}
    return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
