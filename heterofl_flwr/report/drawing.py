"""Style of figures, and conversion to PNG.

Names are drawn with ``parse_math=False``, because matplotlib would read text between two $ as a formula.
"""

import io
import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = {
    "ink": "#1c2330",
    "muted": "#5b6675",
    "grid": "#dde2e9",
    "blue": "#3d5bd9",
    "teal": "#0b8794",
    "green": "#3f8f3a",
    "amber": "#b97a00",
    "red": "#c8444f",
    "violet": "#8a4fbf",
}

SERIES = ("blue", "teal", "green", "amber", "red", "violet")
DASHES = ("-", "--", ":")
SIZE = (4.0, 2.6)  # inches; small, so that text stays readable when a phone shrinks the figure
SMALL = 9.0  # font size in points
LINE, MARK = 60, 5  # characters in a line of a legend, and characters for the mark of an entry
LINE_HEIGHT = 0.19  # inches
LONGEST = 48  # characters in a line of a name
MOST_NAMES, LONGEST_NAME = 20, 12  # maximum number of rows with names, and of characters in such a name


def series(number: int) -> tuple[str, str]:
    """Return the colour and line style of series ``number``."""
    return COLOURS[SERIES[number % len(SERIES)]], DASHES[number // len(SERIES) % len(DASHES)]


def new_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return an empty figure in this package's style, and its axes."""
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, style_axes(figure.subplots(), xlabel, ylabel)


def style_axes(axes: Axes, xlabel: str, ylabel: str) -> Axes:
    """Set the style and labels of axes. Return the axes."""
    axes.set_xlabel(xlabel, fontsize=SMALL, color=COLOURS["muted"], parse_math=False)
    axes.set_ylabel(ylabel, fontsize=SMALL, color=COLOURS["muted"], parse_math=False)
    axes.tick_params(labelsize=SMALL, labelcolor=COLOURS["muted"], color=COLOURS["grid"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(COLOURS["grid"])
    axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def draw_matrix(values: npt.NDArray[Any], xlabel: str, columns: Sequence[str], rows: Sequence[str]) -> Figure:
    """Return a figure of ``values``, of shape (classes, columns), in colours. Zeros are blank."""
    figure, axes = new_axes(xlabel, "class")
    axes.grid(visible=False)
    highest = values.max() or 1
    # Small values are visible, because the palest fifth of the colours is not used.
    image = axes.imshow(np.ma.masked_equal(values, 0), cmap="Blues", aspect="auto", vmin=-highest / 4, vmax=highest)
    bar = figure.colorbar(image)
    bar.ax.set_ylim(0, highest)
    bar.ax.tick_params(labelsize=SMALL, labelcolor=COLOURS["muted"])
    for axis, names in ((axes.xaxis, columns), (axes.yaxis, rows)):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if 0 < len(names) <= MOST_NAMES:
            axis.set_ticks(range(len(names)), [name[:LONGEST_NAME] for name in names], parse_math=False)
            figure.set_figheight(max(SIZE[1], LINE_HEIGHT * len(names) + 1))
    if any(len(name) > 2 for name in columns):
        axes.tick_params(axis="x", rotation=90)
    return figure


def add_legend(axes: Axes) -> None:
    """Add a legend above the axes. A long legend makes the figure higher."""
    (handles, names), figure = axes.get_legend_handles_labels(), axes.get_figure(root=True)
    if handles and figure:
        names = [fill(name, LONGEST) for name in names]
        columns = min(len(handles), 6, max(LINE // (max(map(len, names)) + MARK), 1))
        lines = math.ceil(sum(name.count("\n") + 1 for name in names) / columns)
        figure.set_size_inches(SIZE[0], SIZE[1] + LINE_HEIGHT * max(lines - 2, 0))
        legend = axes.legend(
            handles,
            names,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=columns,
            borderaxespad=0.2,
            frameon=False,
            fontsize=SMALL,
            labelcolor=COLOURS["ink"],
            handlelength=1.6,
            columnspacing=1.2,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def to_png(figure: Figure, title: str) -> bytes:
    """Return the figure as PNG, with a title above it."""
    figure.suptitle(title, fontsize=10.5, color=COLOURS["ink"], parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()
