"""The look of figures, and their files: PNG, and SVG that takes its colours and font from the page around it."""

import io
import re
from collections.abc import Sequence
from html import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "paper": ("#ffffff", "#14171c"),
    "card": ("#f5f7fa", "#1d2128"),
    "ink": ("#1c2330", "#e8ebf0"),
    "muted": ("#5b6675", "#a2acba"),
    "grid": ("#dde2e9", "#333a45"),
    "blue": ("#3d5bd9", "#8ea2ff"),
    "teal": ("#0b8794", "#4cc7d3"),
    "green": ("#3f8f3a", "#7fcf76"),
    "amber": ("#b97a00", "#e6b04d"),
    "red": ("#c8444f", "#f08a8f"),
    "violet": ("#8a4fbf", "#c39af0"),
}
"""Each colour on light and on dark ground."""

SERIES = ("blue", "teal", "green", "amber", "red", "violet")
DASHES = ("-", "--", ":")
SIZE = (4.0, 2.6)  # inches; small, so that text stays readable when a phone shrinks the figure
SMALL = 9.0  # points
LINE, MARK = 60, 5  # characters of that size in a line of a legend, and the room that an entry's mark needs


def light(name: str) -> str:
    """Return a colour as figures use it."""
    return COLOURS[name][0]


def series(number: int) -> tuple[str, str]:
    """Return colour and line style of the n-th of several series; no two of the first 18 are alike."""
    return light(SERIES[number % len(SERIES)]), DASHES[number // len(SERIES) % len(DASHES)]


def new_axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Return an empty figure in this package's look."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel, fontsize=SMALL, color=light("muted"))
    axes.set_ylabel(ylabel, fontsize=SMALL, color=light("muted"))
    axes.tick_params(labelsize=SMALL, labelcolor=light("muted"), color=light("grid"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(light("grid"))
    axes.grid(axis="y", color=light("grid"), linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def plain(text: str) -> str:
    """Return text that matplotlib shows as it is, and does not read as a formula between two dollar signs."""
    return text.replace("$", r"\$")


def add_legend(axes: Axes) -> None:
    """Put the legend above the axes, where it covers nothing; in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            [plain(name) for name in names],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=min(len(handles), 6, max(LINE // (max(map(len, names)) + MARK), 1)),
            borderaxespad=0.2,
            frameon=False,
            fontsize=SMALL,
            labelcolor=light("ink"),
            handlelength=1.6,
            columnspacing=1.2,
        )


def add_band(axes: Axes, places: Sequence[float], ends: Sequence[tuple[float, float]], colour: str) -> None:
    """Draw intervals around the points of a line as a band, if any has a width."""
    low, high = zip(*ends, strict=True) if ends else ((), ())
    if low != high:
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def to_png(figure: Figure, dpi: int = 200, title: str = "") -> bytes:
    """Return the figure as PNG, on white; a title above it stays there."""
    if title:
        figure.suptitle(title, fontsize=10.5, color=light("ink"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def to_svg_file(figure: Figure, name: str, *, transparent: bool = False) -> bytes:
    """Return the figure as an SVG file of its own, the same for the same points."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=transparent)
    return buffer.getvalue()


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Return the figure as an element of a page, with ids that begin with its name, and a label for screen readers."""
    svg = to_svg_file(figure, name, transparent=True).decode()
    svg = svg[svg.index("<svg") :]
    # A style element would hold for the whole page.
    for pattern in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"\s*font-family: [^;\"]*;?"):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    svg = re.sub(r"<svg[^>]*>", f'<svg {box[0] if box else ""} role="img" aria-label="{escape(label)}">', svg, count=1)
    for colour, (value, _) in COLOURS.items():
        svg = svg.replace(value, f"var(--{colour})")
    return svg
