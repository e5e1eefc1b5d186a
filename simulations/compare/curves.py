"""Metrics of methods over what they spent: rounds, bytes, multiplications, seconds, energy; as values and figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from heterofl_flwr.core import formatting
from heterofl_flwr.report.drawing import add_legend, new_axes, series
from heterofl_flwr.runs.metrics import mode_of
from simulations.compare.methods import Contestant, multiplications
from simulations.paper.figures import add_band
from simulations.paper.runs import Run
from simulations.statistics import ANYTHING, SHARE, Summary, summarise

SIZE = (6.4, 4.2)  # inches
SIMULATED = ("simulated-seconds", "joules")  # only runs with simulated devices spend these


class Axis(NamedTuple):
    """What a run spends: the sums by the end of each round, how they are written, and the label of their axis."""

    spent: Callable[[Run], Sequence[float]]
    write: Callable[[float], str]
    label: str


def _summed(*fields: str) -> Callable[[Run], Sequence[float]]:
    """Return a function from a run to the sums of some fields of its records by the end of each round."""
    return lambda run: list(accumulate(sum(getattr(record, name) for name in fields) for record in run.records))


AXES: Mapping[str, Axis] = {
    "rounds": Axis(lambda run: [record.server_round for record in run.records], formatting.number, "round"),
    "bytes": Axis(
        _summed("bytes_down", "bytes_up"), formatting.size, "bytes sent and received for training, all clients"
    ),
    "multiplications": Axis(multiplications, formatting.count, "multiplications of training, all clients"),
    "seconds": Axis(_summed("seconds"), formatting.duration, "seconds on the machine that ran it, evaluation included"),
    "simulated-seconds": Axis(_summed("simulated_seconds"), formatting.duration, "seconds on the simulated devices"),
    "joules": Axis(_summed("joules"), formatting.energy, "energy of the simulated devices, an estimate"),
}


def axes_of(contestants: Sequence[Contestant]) -> list[str]:
    """Return what is spent, without what nobody spent because no devices were simulated."""
    runs = [run for one in contestants for run in one.runs]
    return [name for name in AXES if name not in SIMULATED or any(AXES[name].spent(run)[-1] for run in runs)]


class Point(NamedTuple):
    """An evaluation: what was spent by then, in the mean over seeds, and what was reached."""

    spent: float
    reached: Summary


def curve(contestant: Contestant, metric: str, axis: str) -> list[Point]:
    """Return the evaluations of a metric that all seeds have; there may be none."""
    seeds = [_evaluations(run, metric, axis) for run in contestant.runs]
    found = []
    for number in sorted(set.intersection(*(set(own) for own in seeds))):
        spent, values = zip(*(own[number] for own in seeds), strict=True)
        found.append(
            Point(math.fsum(spent) / len(spent), summarise(values, SHARE if metric.endswith("accuracy") else ANYTHING))
        )
    return found


def spent_until(run: Run, metric: str, target: float, axis: str) -> float | None:
    """Return what a run had spent at the first evaluation that reached a target; None if none did."""
    better = min if mode_of(metric) == "min" else max
    evaluations = _evaluations(run, metric, axis).values()
    return next((spent for spent, value in evaluations if better(value, target) == value), None)


def _evaluations(run: Run, metric: str, axis: str) -> dict[int, tuple[float, float]]:
    """Return, by round with a metric, what was spent by then and the metric."""
    rounds = zip(run.records, AXES[axis].spent(run), strict=True)
    return {own.server_round: (spent, own.evaluate[metric]) for own, spent in rounds if metric in own.evaluate}


def draw(contestants: Sequence[Contestant], metric: str, axis: str) -> Figure | None:
    """Return a figure with a curve for each contestant that has the metric, or None where none has."""
    curves = [(number, one.label, curve(one, metric, axis)) for number, one in enumerate(contestants)]
    positive = [point.spent for *_, points in curves for point in points if 0 < point.spent < math.inf]
    # Values that are so far apart only a logarithmic axis shows, which has no place for 0.
    wide = axis != "rounds" and bool(positive) and max(positive) > 50 * min(positive)
    figure, axes = new_axes(AXES[axis].label, metric.replace("-", " "))
    figure.set_size_inches(*SIZE)
    for number, label, points in curves:
        colour, dash = series(number)
        spent, means = [point.spent for point in points], [point.reached.mean for point in points]
        if wide and points and not spent[-1]:
            axes.axhline(means[-1], color=colour, linestyle=":", label=f"{label} (for nothing)")
        elif points:
            axes.plot(spent, means, dash, color=colour, label=label, marker="o", markersize=2.5)
            add_band(axes, spent, [point.reached for point in points], colour)
    if wide:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if axis != "rounds":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(AXES[axis].write(value))))
    if metric.endswith("accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    add_legend(axes)
    return figure if axes.lines else None
