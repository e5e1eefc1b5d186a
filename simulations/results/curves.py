"""Metrics over what runs spent for them: rounds, bytes, multiplications, seconds, energy."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from heterofl_flwr.core import formatting
from heterofl_flwr.federation.evaluation import is_share
from heterofl_flwr.runs.metrics import mode_of
from simulations.results.configurations import Configuration, bytes_sent, multiplications
from simulations.results.runs import Run
from simulations.statistics import ANYTHING, PERPLEXITY, SHARE, Interval, Summary, summarise

UNCERTAIN = ("multiplications", "simulated-seconds", "joules")  # the last two are of simulated devices


class Axis(NamedTuple):
    """What a run spends: the sums by the end of each round, how they are written, and the label of their axis."""

    spent: Callable[[Run], Sequence[float]]
    write: Callable[[float], str]
    label: str


def _summed(field: str) -> Callable[[Run], Sequence[float]]:
    """Return a function from a run to the sums of a field of its records by the end of each round."""
    return lambda run: list(accumulate(getattr(record, field) for record in run.records))


AXES: Mapping[str, Axis] = {
    "rounds": Axis(lambda run: [record.server_round for record in run.records], formatting.number, "round"),
    "bytes": Axis(bytes_sent, formatting.size, "bytes sent and received for training, all clients"),
    "multiplications": Axis(multiplications, formatting.count, "multiplications of training, all clients"),
    "seconds": Axis(_summed("seconds"), formatting.duration, "seconds on the machine that ran it, evaluation included"),
    "simulated-seconds": Axis(_summed("simulated_seconds"), formatting.duration, "seconds on the simulated devices"),
    "joules": Axis(_summed("joules"), formatting.energy, "energy of the simulated devices, an estimate"),
}


def axes_of(configurations: Sequence[Configuration]) -> list[str]:
    """Return what is spent, without what is not known of any run."""
    runs = [run for one in configurations for run in one.runs]
    return [name for name in AXES if name not in UNCERTAIN or any(AXES[name].spent(run)[-1] > 0 for run in runs)]


class Point(NamedTuple):
    """An evaluation: what was spent by then, in the mean over seeds, and what was reached."""

    spent: float
    reached: Summary


def curve(configuration: Configuration, metric: str, axis: str) -> list[Point]:
    """Return the evaluations of a metric that all seeds have; there may be none."""
    seeds = [_evaluations(run, metric, axis) for run in configuration.runs]
    found = []
    for number in sorted(set.intersection(*(set(own) for own in seeds))):
        spent, values = zip(*(own[number] for own in seeds), strict=True)
        found.append(Point(math.fsum(spent) / len(spent), summarise(values, bounds(metric))))
    return found


def bounds(metric: str) -> Interval:
    """Return what a metric can be."""
    return SHARE if is_share(metric) else PERPLEXITY if metric.endswith("perplexity") else ANYTHING


def spent_until(run: Run, metric: str, target: float, axis: str) -> float | None:
    """Return what a run had spent at the first evaluation that reached a target; None if none did."""
    better = min if mode_of(metric) == "min" else max
    evaluations = _evaluations(run, metric, axis).values()
    return next((spent for spent, value in evaluations if better(value, target) == value), None)


def _evaluations(run: Run, metric: str, axis: str) -> dict[int, tuple[float, float]]:
    """Return, by round with a metric, what was spent by then and the metric; without those of too few clients."""
    rounds = zip(run.records, AXES[axis].spent(run), strict=True)
    return {own.server_round: (spent, own.evaluate[metric]) for own, spent in rounds if metric in own.comparable}
