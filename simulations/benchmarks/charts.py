"""Charts of measurements, in the look of the reports' figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from heterofl_flwr.report.drawing import add_legend, new_axes, series


def draw(
    curves: Mapping[str, Sequence[float]], names: Sequence[str], xlabel: str, ylabel: str, *, log: bool = False
) -> Figure:
    """Return a chart with one curve for each name in ``curves``, its points side by side."""
    figure, axes = new_axes(xlabel, ylabel)
    for number, (name, values) in enumerate(curves.items()):
        colour, dash = series(number)
        axes.plot(range(len(names)), values, dash, color=colour, label=name, marker="o", markersize=4)
    axes.set_xticks(range(len(names)), names)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(bottom=0)
    add_legend(axes)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a chart as SVG or PNG, by the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date and with fixed ids, equal charts are equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(f"chart: {path}")
