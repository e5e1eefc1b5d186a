"""Methods as curves in one figure: a metric over what was spent for it."""

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from heterofl_flwr.core import formatting
from heterofl_flwr.report.drawing import add_legend, new_axes, series
from simulations.comparison.curves import Point, curve
from simulations.comparison.methods import Contestant

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
