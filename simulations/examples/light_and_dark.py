"""Pictures of the pages: legible in the reader's light or dark mode."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from heterofl_flwr.report.drawing import to_svg
from simulations.program import parser_of, status_of


def write_picture(program: str, description: str | None, draw: Callable[[], Figure]) -> int:
    """Write a picture to the file that the command line names; return the exit status."""

    def work() -> None:
        parser = parser_of(f"simulations.examples.{program}", description)
        parser.add_argument("file", type=Path, metavar="FILE", help="the SVG file to write")
        file: Path = parser.parse_args().file
        file.write_text(to_svg(draw(), "heterofl-flwr"), encoding="utf-8")

    return status_of(program, work)
