"""Figures of what configurations reached: at the end, by level, and over what they spent."""

import math
from collections.abc import Sequence
from textwrap import fill

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from heterofl_flwr.core import formatting
from heterofl_flwr.federation.evaluation import is_share
from heterofl_flwr.report.drawing import add_band, add_legend, new_axes, plain, series
from simulations.results.configurations import Configuration
from simulations.results.curves import AXES, curve
from simulations.results.tables import LevelReached, Reached
from simulations.statistics import Summary

WIDTH, HEIGHT = 6.4, 4.2  # inches
LINE = 0.17  # inches for a line of a label
LONGEST, WIDEST = 34, 60  # characters in a line of a label beside the axes, and of one in a legend above them


def draw_reached(found: Sequence[Reached]) -> Figure:
    """Draw what each configuration reached by one metric: final and best, means with their intervals."""
    metric = found[0].metric
    figure, axes = new_axes(metric.replace("-", " ") + (", %" if is_share(metric) else ""), "")
    labels = [plain(fill(own.label, LONGEST)) for own in found]
    most = max(label.count("\n") + 1 for label in labels)
    figure.set_size_inches(WIDTH, 1 + LINE * max(most + 0.5, 2) * len(found))
    for number, when in enumerate(("final", "best")):
        colour, _ = series(number)
        values = [getattr(own, when) for own in found]
        places = [place - 0.15 * (-1) ** number for place in range(len(found))]
        axes.plot([own.mean for own in values], places, color=colour, linestyle="", marker="od"[number], label=when)
        for place, own in zip(places, values, strict=True):
            if own.interval:
                axes.plot(own.interval, (place, place), color=colour, linewidth=1.2)
    axes.set_yticks(range(len(found)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x", color=axes.spines["left"].get_edgecolor(), linewidth=0.7)
    add_legend(axes)
    return figure


def draw_curves(configurations: Sequence[Configuration], metric: str, axis: str) -> Figure | None:
    """Return a figure with a curve for each configuration that has the metric, or None where none has."""
    curves = [(number, fill(one.label, WIDEST), curve(one, metric, axis)) for number, one in enumerate(configurations)]
    positive = [point.spent for *_, points in curves for point in points if 0 < point.spent < math.inf]
    # Values that are so far apart only a logarithmic axis shows, which has no place for 0.
    wide = axis != "rounds" and bool(positive) and max(positive) > 50 * min(positive)
    figure, axes = new_axes(AXES[axis].label, metric.replace("-", " "))
    figure.set_size_inches(WIDTH, HEIGHT)
    for number, label, points in curves:
        colour, dash = series(number)
        spent, means = [point.spent for point in points], [point.reached.mean for point in points]
        if wide and points and not spent[-1]:
            axes.axhline(means[-1], color=colour, linestyle=":", label=f"{label} (for nothing)")
        elif points:
            axes.plot(spent, means, dash, color=colour, label=label, marker="o", markersize=2.5)
            add_band(axes, spent, [point.reached.ends for point in points], colour)
    if wide:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if axis != "rounds":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(AXES[axis].write(value))))
    if is_share(metric):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    add_legend(axes)
    return figure if axes.lines else None


def draw_levels(found: Sequence[LevelReached], metric: str, labels: Sequence[str]) -> Figure | None:
    """Draw what levels' own models reached over what they compute, a line for each configuration of several levels.

    Its place among all labels gives a configuration its colour, the same as in the figures of curves.
    """
    points: dict[str, list[tuple[int, Summary]]] = {}
    for own in found:
        if own.cost and metric in own.metrics:
            points.setdefault(own.label, []).append((own.cost.macs, own.metrics[metric]))
    lines = {label: sorted(own, key=lambda point: point[0]) for label, own in points.items() if len(own) > 1}
    if not lines:
        return None
    figure, axes = new_axes("multiplications of a forward pass of one example", metric.replace("-", " "))
    figure.set_size_inches(WIDTH, HEIGHT)
    for label, line in lines.items():
        colour, dash = series(labels.index(label))
        places, summaries = zip(*line, strict=True)
        axes.plot(places, [own.mean for own in summaries], dash, color=colour, marker="o", markersize=4, label=label)
        add_band(axes, places, [own.ends for own in summaries], colour)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(formatting.count(value))))
    if is_share(metric):
        axes.yaxis.set_major_formatter(PercentFormatter(100.0, 0, " %"))
    add_legend(axes)
    return figure
