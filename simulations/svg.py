"""Conversion of figures to SVG, and functions for the documentation's pictures, which exist in light and dark mode."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes as Place
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from heterofl_flwr.report.drawing import COLOURS, SMALL
from simulations.program import parser_of, status_of

DARK = {
    "ink": "#e8ebf0",
    "muted": "#a2acba",
    "grid": "#333a45",
    "blue": "#8ea2ff",
    "teal": "#4cc7d3",
    "green": "#7fcf76",
    "amber": "#e6b04d",
    "red": "#f08a8f",
    "violet": "#c39af0",
}
"""Replacement of each colour in dark mode."""


def to_svg(figure: Figure, name: str, *, modes: bool = False) -> bytes:
    """Return the figure as SVG; equal figures give equal bytes.

    With ``modes`` it has no background, and its colours depend on the browser's light or dark mode.
    """
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=modes)
    return _with_modes(buffer.getvalue().decode()).encode() if modes else buffer.getvalue()


def _with_modes(svg: str) -> str:
    used = {name: colour for name, colour in COLOURS.items() if colour in svg}
    bright, dark = (" ".join(f"--{name}: {colours[name]};" for name in used) for colours in (COLOURS, DARK))
    for name, colour in used.items():
        svg = svg.replace(colour, f"var(--{name})")
    rules = f":root {{ {bright} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return svg.replace("</style>", f" {rules}</style>", 1)


def label(place: Place, title: str, below: str) -> None:
    """Write a title and a note below into axes, and remove their ticks."""
    place.set_title(title, fontsize=9.5, color=COLOURS["ink"])
    place.set_xlabel(below, fontsize=SMALL, color=COLOURS["muted"])
    place.set_xticks([])
    place.set_yticks([])
    place.spines[:].set_color(COLOURS["grid"])


def add_bar(figure: Figure, image: AxesImage, **options: Any) -> None:
    """Add a colour bar."""
    bar = figure.colorbar(image, **options)
    bar.ax.tick_params(labelsize=SMALL, length=0, labelcolor=COLOURS["ink"])
    bar.outline.set_visible(False)


def write_picture(program: str, description: str | None, draw: Callable[[], Figure]) -> int:
    """Write a picture to the file in the command line; return the exit code."""

    def work() -> None:
        parser = parser_of(f"simulations.examples.{program}", description)
        parser.add_argument("file", type=Path, metavar="FILE", help="the SVG file to write")
        file: Path = parser.parse_args().file
        file.write_bytes(to_svg(draw(), "heterofl-flwr", modes=True))

    return status_of(program, work)
