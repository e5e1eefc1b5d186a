"""Figures: the paper's Figures 2 to 11 from our runs, and results of configurations over rounds and costs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from heterofl_flwr.core import LEVELS, Mix, formatting
from heterofl_flwr.federation.client_metrics import is_share
from heterofl_flwr.report.drawing import COLOURS, add_legend, new_axes, series
from simulations.results.configurations import Configuration, Reached
from simulations.results.levels import level_curve
from simulations.results.paper import Job, Key, usual_norm
from simulations.results.runs import short_mix
from simulations.results.spent import AXES, Point, curve
from simulations.results.statistics import Summary

INTERPOLATION: Mapping[int, tuple[str, str, str]] = {
    2: ("cifar10", "iid", "global-accuracy"),
    3: ("mnist", "iid", "global-accuracy"),
    4: ("wikitext2", "iid", "global-perplexity"),
    5: ("mnist", "noniid", "local-accuracy"),
    6: ("cifar10", "noniid", "local-accuracy"),
    7: ("mnist", "noniid", "global-accuracy"),
    8: ("cifar10", "noniid", "global-accuracy"),
}
"""Data, split and metric by figure. A panel's mixes have the same larger level; each curve has one smaller level."""

IMAGES = (("iid", "global-accuracy"), ("noniid", "local-accuracy"), ("noniid", "global-accuracy"))
LEARNING: Mapping[int, tuple[str, Sequence[tuple[str, str]]]] = {
    **{9: ("mnist", IMAGES), 10: ("cifar10", IMAGES)},
    11: ("wikitext2", (("iid", "global-perplexity"),)),
}
"""Data by figure, with split and metric of each pair of panels (Fix and Dynamic)."""

ENDS = (("final", "o", "-"), ("best", "d", ":"))  # with the mark and the line of each


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel of a figure of the paper, with the jobs of each curve by its label."""

    name: str  # such as 3a
    metric: str
    curves: Mapping[str, Sequence[Job]]

    @property
    def over_rounds(self) -> bool:
        """Whether the horizontal axis is the round; else it is the mean number of parameters of a client."""
        return int(self.name[:-1]) in LEARNING

    @property
    def title(self) -> str:
        """Title of the panel."""
        job = next(iter(self.curves.values()))[0]
        return f"Figure {self.name}: {job.data}, {job.split}, {self.metric.replace('-', ' ')}, {job.assignment}"

    def select(self, found: Mapping[Key, Reached]) -> dict[str, list[Reached]]:
        """Return the results of each curve's jobs, by label.

        If all curves share a job (with only the larger level), a curve without results of other jobs is empty.
        """
        own = {label: [job for job in jobs if (job, self.metric) in found] for label, jobs in self.curves.items()}
        few = {label for label, jobs in own.items() if [job.mix for job in jobs] == [label.partition("-")[0]]}
        return {label: [] if label in few else [found[job, self.metric] for job in own[label]] for label in own}


def panels() -> Iterator[Panel]:
    """Yield all panels of Figures 2 to 11."""
    largest, *smaller = LEVELS
    for number, (data, split, metric) in INTERPOLATION.items():
        norm = usual_norm(data)
        for large, *smalls in (list(LEVELS)[place:] for place in range(len(smaller))):
            mixes = {f"{large}-{small}": _tenths(large, small) for small in smalls}
            jobs = {label: [Job(data, split, mix, "fix", norm) for mix in own] for label, own in mixes.items()}
            yield Panel(f"{number}{large}", metric, jobs)
    for number, (data, rows) in LEARNING.items():
        kinds = product(rows, ("fix", "dynamic"))
        for letter, ((split, metric), assignment) in zip("abcdef", kinds, strict=False):
            halves = (f"{largest}-{small}" for small in smaller)
            jobs = {mix: [Job(data, split, mix, assignment, usual_norm(data))] for mix in halves}
            yield Panel(f"{number}{letter}", metric, jobs)


def _tenths(large: str, small: str) -> list[str]:
    """Return the mixes with 10 % to 100 % of clients at the larger of two levels."""
    return [*(short_mix(Mix.parse(f"{large}{own}-{small}{10 - own}")) for own in range(1, 10)), large]


def draw_panel(panel: Panel, found: Mapping[Key, Reached]) -> Figure | None:
    """Draw a panel: final and best values with error bars, or lines with bands over rounds; None without points."""
    figure, axes = new_axes("round" if panel.over_rounds else "mean parameters of a client", _name(panel.metric))
    for label, reached in panel.select(found).items():
        colour, dash = series(list(LEVELS).index(label[-1]) - 1)
        for own in reached if panel.over_rounds else ():
            _add_line(axes, curve(own.configuration, panel.metric), colour, dash, label)
        sizes = sorted((size, own) for own in reached if (size := own.runs[0][0].parameters) is not None)
        for when, mark, line in ENDS if sizes and not panel.over_rounds else ():
            points = [Point(size, getattr(own, when)) for size, own in sizes]
            style = {"linestyle": line, "marker": mark, "markersize": 3}
            _add_bars(axes, points, color=colour, label=f"{label}, {when}", **style)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if not panel.over_rounds:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.count(value)))
    return _finished(figure, axes)


def draw_curves(configurations: Sequence[Configuration], metric: str, axis: str) -> Figure | None:
    """Draw a curve for each configuration that has the metric; None if no configuration has it."""
    curves = [(number, one.label, curve(one, metric, axis)) for number, one in enumerate(configurations)]
    positive = [point.spent for *_, points in curves for point in points if 0 < point.spent < math.inf]
    # Values that are far apart need a logarithmic axis, which cannot show 0.
    wide = axis != "rounds" and bool(positive) and max(positive) > 50 * min(positive)
    figure, axes = new_axes(AXES[axis].label, _name(metric))
    for number, label, points in curves:
        colour, dash = series(number)
        if wide and points and not points[-1].spent:
            axes.axhline(points[-1].reached.mean, color=colour, linestyle=":", label=f"{label} (for nothing)")
        elif points:
            _add_line(axes, points, colour, dash, label)
    if wide:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if axis != "rounds":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(AXES[axis].write(value))))
    return _finished(figure, axes)


def draw_levels(configurations: Sequence[Configuration], metric: str, last: int) -> Figure | None:
    """Draw results of levels' models over their multiplications, a line for each configuration with several levels.

    A configuration has the same colour as in ``draw_curves``.
    """
    lines = [level_curve(one, metric, last) for one in configurations]
    figure, axes = new_axes("multiplications of a forward pass of one example", _name(metric))
    for number, line in enumerate(lines):
        if len(line) > 1:
            _add_line(axes, line, *series(number), configurations[number].label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(formatting.count(value))))
    return _finished(figure, axes)


def draw_differences(rows: Sequence[tuple[str, Mapping[str, Summary]]], label: str) -> Figure:
    """Draw differences by level with their intervals: a group of points for each level, a point for each row."""
    figure, axes = new_axes("level", label)
    levels = list(dict.fromkeys(level for _, by_level in rows for level in by_level))
    for number, (name, by_level) in enumerate(rows):
        aside = 0.12 * (number - (len(rows) - 1) / 2)
        points = [Point(levels.index(level) + aside, own) for level, own in by_level.items()]
        _add_bars(axes, points, fmt="o", color=series(number)[0], markersize=4, label=name)
    axes.axhline(0, color=COLOURS["muted"], linewidth=1)
    axes.set_xticks(range(len(levels)), levels)
    add_legend(axes)
    return figure


def _add_line(axes: Axes, points: Sequence[Point], colour: str, dash: str, label: str) -> None:
    """Draw a line, with a band for the intervals unless all have width 0."""
    places, values = zip(*points, strict=True) if points else ((), ())
    axes.plot(places, [own.mean for own in values], dash, color=colour, label=label, marker="o", markersize=3)
    low, high = zip(*(own.ends for own in values), strict=True) if points else ((), ())
    if low != high:
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _add_bars(axes: Axes, points: Sequence[Point], **style: Any) -> None:
    """Draw points, with a bar for each interval unless all have width 0."""
    places, values = zip(*points, strict=True)
    means = [own.mean for own in values]
    bars = list(zip(*((own.mean - own.ends[0], own.ends[1] - own.mean) for own in values), strict=True))
    axes.errorbar(places, means, bars if any(map(any, bars)) else None, **style)


def _finished(figure: Figure, axes: Axes) -> Figure | None:
    """Return a figure with its legend; None if nothing was drawn."""
    add_legend(axes)
    return figure if axes.lines else None


def _name(metric: str) -> str:
    """Return the label of an axis with a metric."""
    return metric.replace("-", " ") + (", %" if is_share(metric) else "")
