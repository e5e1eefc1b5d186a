"""From a matplotlib figure to PNG, and to SVG that takes its colours and font from the page around it."""

import io
import re
from html import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from heterofl_flwr.report.theme import light, with_variables

SIZE = (4.4, 2.75)  # inches; small, so that text stays readable when a phone shrinks the figure
SMALL = 9.0  # points
LINE, MARK = 66, 5  # letters of that size in a line of a legend, and those that an entry's mark takes


def new_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return an empty figure in the house's look."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel, fontsize=SMALL, color=light("muted"))
    axes.set_ylabel(ylabel, fontsize=SMALL, color=light("muted"))
    axes.tick_params(labelsize=SMALL, labelcolor=light("muted"), color=light("grid"))
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(light("grid"))
    axes.grid(axis="y", color=light("grid"), linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def add_legend(axes: Axes) -> None:
    """Put the legend above the axes, where it covers nothing; in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        longest = max(map(len, names)) + MARK
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=min(len(handles), 6, max(LINE // longest, 1)),
            borderaxespad=0.2,
            frameon=False,
            fontsize=SMALL,
            labelcolor=light("ink"),
            handlelength=1.6,
            columnspacing=1.2,
        )


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """Return the figure as PNG, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def to_svg_file(figure: Figure, name: str) -> bytes:
    """Return the figure as an SVG file of its own, the same for the same points."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Return the figure as an SVG element.

    Parameters
    ----------
    figure : Figure
        The figure.
    name : str
        Put before every id, as ids must be unique on a page.
    label : str
        What the figure shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r"\s*font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    svg = re.sub(r"<svg[^>]*>", f'<svg {box[0] if box else ""} role="img" aria-label="{escape(label)}">', svg, count=1)
    return with_variables(svg)
