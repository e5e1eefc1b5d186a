"""What a method had reached when it had spent so much: its metric over rounds, bytes, multiplications and seconds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import fsum

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from heterofl_flwr.core import formatting
from heterofl_flwr.report.drawing import add_legend, new_axes, series
from heterofl_flwr.runs.metrics import mode_of
from simulations.compare.methods import Contestant, multiplications
from simulations.paper.runs import Run
from simulations.paper.statistics import Summary, summarise

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


SIZE = (6.4, 4.2)  # inches
AMOUNTS: Mapping[str, Callable[[float], str]] = {
    "rounds": formatting.number,
    "bytes": formatting.size,
    "multiplications": formatting.count,
    "seconds": formatting.duration,
    "simulated-seconds": formatting.duration,
    "joules": formatting.energy,
}
"""How each kind of spending is written."""

XLABELS = {
    "rounds": "round",
    "bytes": "bytes sent and received for training, all clients",
    "multiplications": "multiplications of training, all clients",
    "seconds": "seconds on the machine that ran it, evaluation included",
    "simulated-seconds": "seconds on the simulated devices",
    "joules": "energy of the simulated devices, an estimate",
}


def draw(contestants: Sequence[Contestant], metric: str, axis: str) -> Figure | None:
    """Return a figure with a curve for each contestant that has the metric, or None where none has."""
    found = [(number, one.label, curve(one, metric, axis)) for number, one in enumerate(contestants)]
    found = [own for own in found if own[2]]
    if not found:
        return None
    figure, axes = new_axes(XLABELS[axis], metric.replace("-", " "))
    figure.set_size_inches(*SIZE)
    wide = axis != "rounds" and _is_wide([point.spent for _, _, points in found for point in points])
    for number, label, points in found:
        _plot(axes, number, label, points, without_cost=wide and points[-1].spent == 0)
    if wide:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if axis != "rounds":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(AMOUNTS[axis](value))))
    if metric.endswith("accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    add_legend(axes)
    return figure


def _plot(axes: Axes, number: int, label: str, points: Sequence[Point], *, without_cost: bool) -> None:
    colour, dash = series(number)
    means = [point.reached.mean for point in points]
    if without_cost:  # a logarithmic axis has no place for nothing
        axes.axhline(means[-1], color=colour, linestyle=":", label=f"{label} (for nothing)")
        return
    places = [point.spent for point in points]
    axes.plot(places, means, dash, color=colour, label=label, marker="o", markersize=2.5)
    halves = [point.reached.half_width or 0.0 for point in points]
    if any(halves):
        low = [mean - half for mean, half in zip(means, halves, strict=True)]
        high = [mean + half for mean, half in zip(means, halves, strict=True)]
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _is_wide(values: Sequence[float]) -> bool:
    """Whether values are so far apart that only a logarithmic axis shows them all."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    return bool(positive) and max(positive) > 50 * min(positive)
