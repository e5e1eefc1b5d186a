"""Functions for the documentation's pictures, which exist in light and dark mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes as Place
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from heterofl_flwr.report.drawing import COLOURS, SMALL
from simulations.program import parser_of, status_of
from simulations.svg import to_svg


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
