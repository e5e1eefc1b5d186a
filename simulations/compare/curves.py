"""Metrics of methods over what they spent: rounds, bytes, multiplications, seconds, energy; as values and figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from heterofl_flwr.core import formatting
from heterofl_flwr.report.drawing import add_legend, new_axes, series
from heterofl_flwr.runs.metrics import mode_of
from simulations.compare.methods import Contestant, multiplications
from simulations.paper.figures import add_band
from simulations.paper.runs import Run
from simulations.paper.statistics import Summary, summarise

SIZE = (6.4, 4.2)  # inches


@dataclass(frozen=True, slots=True)
class Axis:
    """What a run spends: the sums by the end of each round, how they are written, and the label of their axis."""

    spent: Callable[[Run], Sequence[float]]
    write: Callable[[float], str]
    label: str
    simulated: bool = False  # whether only runs with simulated devices spend it


def bytes_sent(run: Run) -> list[float]:
    """Return the bytes of all training messages, both ways, by the end of each round."""
    return list(accumulate(float(record.bytes_down + record.bytes_up) for record in run.records))


AXES: Mapping[str, Axis] = {
    "rounds": Axis(lambda run: [float(record.server_round) for record in run.records], formatting.number, "round"),
    "bytes": Axis(bytes_sent, formatting.size, "bytes sent and received for training, all clients"),
    "multiplications": Axis(multiplications, formatting.count, "multiplications of training, all clients"),
    "seconds": Axis(
        lambda run: list(accumulate(record.seconds for record in run.records)),
        formatting.duration,
        "seconds on the machine that ran it, evaluation included",
    ),
    "simulated-seconds": Axis(
        lambda run: list(accumulate(record.simulated_seconds for record in run.records)),
        formatting.duration,
        "seconds on the simulated devices",
        simulated=True,
    ),
    "joules": Axis(
        lambda run: list(accumulate(record.joules for record in run.records)),
        formatting.energy,
        "energy of the simulated devices, an estimate",
        simulated=True,
    ),
}


def axes_of(contestants: Sequence[Contestant]) -> list[str]:
    """Return what is spent, without what nobody spent because no devices were simulated."""
    runs = [run for one in contestants for run in one.runs]
    return [name for name, axis in AXES.items() if not axis.simulated or any(axis.spent(run)[-1] for run in runs)]


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
        Point(math.fsum(own[number] for own in spent) / len(spent), summarise([own[number] for own in evaluated]))
        for number in rounds
    ]


def spent_until(run: Run, metric: str, target: float, axis: str) -> float | None:
    """Return what a run had spent at the first evaluation that reached a target; None if none did."""
    better = min if mode_of(metric) == "min" else max
    reached = (number for number, value in _by_round(run, metric).items() if better(value, target) == value)
    number = next(reached, None)
    return None if number is None else _spent(run, axis)[number]


def _by_round(run: Run, metric: str) -> dict[int, float]:
    return {record.server_round: record.evaluate[metric] for record in run.records if metric in record.evaluate}


def _spent(run: Run, axis: str) -> dict[int, float]:
    return {record.server_round: own for record, own in zip(run.records, AXES[axis].spent(run), strict=True)}


def draw(contestants: Sequence[Contestant], metric: str, axis: str) -> Figure | None:
    """Return a figure with a curve for each contestant that has the metric, or None where none has."""
    found = [(number, one.label, curve(one, metric, axis)) for number, one in enumerate(contestants)]
    found = [own for own in found if own[2]]
    if not found:
        return None
    figure, axes = new_axes(AXES[axis].label, metric.replace("-", " "))
    figure.set_size_inches(*SIZE)
    positive = [point.spent for _, _, points in found for point in points if 0 < point.spent < math.inf]
    # Values that are so far apart only a logarithmic axis shows, which has no place for 0.
    wide = axis != "rounds" and bool(positive) and max(positive) > 50 * min(positive)
    for number, label, points in found:
        _plot(axes, number, label, points, without_cost=wide and points[-1].spent == 0)
    if wide:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if axis != "rounds":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(AXES[axis].write(value))))
    if metric.endswith("accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    add_legend(axes)
    return figure


def _plot(axes: Axes, number: int, label: str, points: Sequence[Point], *, without_cost: bool) -> None:
    colour, dash = series(number)
    means = [point.reached.mean for point in points]
    if without_cost:
        axes.axhline(means[-1], color=colour, linestyle=":", label=f"{label} (for nothing)")
        return
    places = [point.spent for point in points]
    axes.plot(places, means, dash, color=colour, label=label, marker="o", markersize=2.5)
    halves = [point.reached.half_width or 0.0 for point in points]
    if any(halves):
        add_band(axes, places, means, halves, colour)
