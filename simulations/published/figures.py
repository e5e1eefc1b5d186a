"""Figures 2 to 11, drawn from runs in the house's look."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import LEVELS
from heterofl_flwr.report.drawing import add_legend, new_axes, series, to_png, to_svg_file
from simulations.published.curves import Curve, Panel

HEADER = """# Figures 2 to 11

Drawn from finished runs with the published settings, and from nothing else. Every point is the mean over seeds; bars
and bands are 95 % intervals, from three seeds on. In Figures 2 to 8 a point is the best round by the test set, as in
the paper, over the mean number of parameters of a client.
"""


def draw(panel: Panel) -> Figure:
    """Return a panel that has points as a figure."""
    ylabel = panel.metric if panel.metric == "perplexity" else "accuracy, %"
    figure, axes = new_axes("round" if panel.over_rounds else "mean parameters of a client", ylabel)
    for curve in panel.curves:
        if curve.points:
            (_band if panel.over_rounds else _bars)(axes, curve)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if not panel.over_rounds:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.count(value)))
    add_legend(axes)
    return figure


def files(panels: Sequence[Panel]) -> dict[str, bytes]:
    """Return the files of all panels that have points, and a page that shows them and lists what is missing."""
    made: dict[str, bytes] = {}
    for panel in panels:
        if panel.drawable:
            figure = draw(panel)
            made[f"figures/figure-{panel.name}.png"] = to_png(figure)
            made[f"figures/figure-{panel.name}.svg"] = to_svg_file(figure, panel.name)
    return {**made, "figures.md": page(panels).encode()}


def page(panels: Sequence[Panel]) -> str:
    """Return the page, in Markdown."""
    parts = [HEADER]
    for panel in panels:
        shown = f"\n![{panel.title}](figures/figure-{panel.name}.svg)\n" if panel.drawable else ""
        missing = [f"- {curve.label}: {', '.join(curve.missing)}" for curve in panel.curves if curve.missing]
        without = "\nWithout a run:\n\n" + "\n".join(missing) + "\n" if missing else ""
        parts.append(f"## Figure {panel.name}: {panel.title}\n{shown}{without}")
    return "\n".join(parts)


def _bars(axes: Axes, curve: Curve) -> None:
    colour, dash = _look(curve)
    places, means, halves = _columns(curve)
    axes.errorbar(
        places,
        means,
        yerr=halves if any(halves) else None,
        color=colour,
        linestyle=dash,
        marker="o",
        markersize=3,
        capsize=2,
        label=curve.label,
    )


def _band(axes: Axes, curve: Curve) -> None:
    colour, dash = _look(curve)
    places, means, halves = _columns(curve)
    axes.plot(places, means, dash, color=colour, label=curve.label)
    if any(halves):
        low = [mean - half for mean, half in zip(means, halves, strict=True)]
        high = [mean + half for mean, half in zip(means, halves, strict=True)]
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _columns(curve: Curve) -> tuple[list[float], list[float], list[float]]:
    places = [place for place, _ in curve.points]
    return places, [own.mean for _, own in curve.points], [own.half_width or 0.0 for _, own in curve.points]


def _look(curve: Curve) -> tuple[str, str]:
    """Return colour and dash, the same for the same smaller level in every panel."""
    return series(list(LEVELS).index(curve.label[-1]) - 1)
