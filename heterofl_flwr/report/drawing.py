"""The look of figures, and their files: PNG, and SVG that follows the reader's light or dark mode."""

import io

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
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


def add_legend(axes: Axes) -> None:
    """Put the legend above the axes, where it covers nothing; in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles,
            [name.replace("$", r"\$") for name in names],  # between two of them matplotlib reads a formula
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


def to_png(figure: Figure, title: str) -> bytes:
    """Return the figure as PNG, on white, with a title above it."""
    figure.suptitle(title, fontsize=10.5, color=light("ink"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def to_svg_file(figure: Figure, name: str, *, transparent: bool = False) -> bytes:
    """Return the figure as an SVG file of its own, the same for the same points."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=transparent)
    return buffer.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """Return the figure as SVG whose colours follow the reader's light or dark mode; the same for the same points."""
    svg = to_svg_file(figure, name, transparent=True).decode()
    used = {colour: pair for colour, pair in COLOURS.items() if pair[0] in svg}
    bright, dark = (" ".join(f"--{colour}: {pair[mode]};" for colour, pair in used.items()) for mode in (0, 1))
    for colour, pair in used.items():
        svg = svg.replace(pair[0], f"var(--{colour})")
    rules = f":root {{ {bright} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return svg.replace("</style>", f" {rules}</style>", 1)
