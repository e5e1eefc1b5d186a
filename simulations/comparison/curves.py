"""What a method had reached when it had spent so much: its metric over rounds, bytes, multiplications and seconds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import fsum

from heterofl_flwr.runs.metrics import mode_of
from simulations.comparison.methods import Contestant
from simulations.comparison.work import multiplications
from simulations.published.runs import Run
from simulations.published.statistics import Summary, summarise

Spending = Callable[[Run], Sequence[float]]
"""From a run to what it had spent by the end of each round."""


def bytes_sent(run: Run) -> list[float]:
    """Return the bytes of all training messages, both ways, by the end of each round."""
    return list(accumulate(float(record.bytes_down + record.bytes_up) for record in run.records))


AXES: Mapping[str, Spending] = {
    "rounds": lambda run: [float(record.server_round) for record in run.records],
    "bytes": bytes_sent,
    "multiplications": multiplications,
    "seconds": lambda run: list(accumulate(record.seconds for record in run.records)),
    "simulated-seconds": lambda run: list(accumulate(record.simulated_seconds for record in run.records)),
    "joules": lambda run: list(accumulate(record.joules for record in run.records)),
}
"""What is spent by the end of each round, by name."""

SIMULATED = ("simulated-seconds", "joules")
"""What only runs with simulated devices spend."""


def axes_of(contestants: Sequence[Contestant]) -> list[str]:
    """Return what is spent, without what nobody spent because no devices were simulated."""
    runs = [run for one in contestants for run in one.runs]
    return [axis for axis in AXES if axis not in SIMULATED or any(AXES[axis](run)[-1] for run in runs)]


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation: what was spent by then, in the mean over seeds, and what was reached."""

    spent: float
    reached: Summary


def curve(contestant: Contestant, metric: str, axis: str) -> list[Point]:
    """Return the evaluations of a metric that all seeds have; there may be none."""
    evaluated = [_by_round(run, metric) for run in contestant.runs]
    spent = [_spent(run, axis) for run in contestant.runs]
    rounds = sorted(set.intersection(*(set(own) for own in evaluated)))
    return [
        Point(_mean([own[number] for own in spent]), summarise([own[number] for own in evaluated])) for number in rounds
    ]


def spent_until(run: Run, metric: str, target: float, axis: str) -> float | None:
    """Return what a run had spent at the first evaluation that reached a target; None if none did."""
    better = min if mode_of(metric) == "min" else max
    spent = _spent(run, axis)
    reached = (number for number, value in _by_round(run, metric).items() if better(value, target) == value)
    number = next(reached, None)
    return None if number is None else spent[number]


def _by_round(run: Run, metric: str) -> dict[int, float]:
    return {record.server_round: record.evaluate[metric] for record in run.records if metric in record.evaluate}


def _spent(run: Run, axis: str) -> dict[int, float]:
    return {record.server_round: own for record, own in zip(run.records, AXES[axis](run), strict=True)}


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)
