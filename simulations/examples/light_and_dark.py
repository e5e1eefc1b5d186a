"""Pictures of the pages: legible in the reader's light or dark mode."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from heterofl_flwr.report.drawing import COLOURS, to_svg_file
from simulations.program import parser_of, status_of


def write_picture(program: str, description: str | None, draw: Callable[[], Figure]) -> int:
    """Write a picture to the file that the command line names; return the exit status."""

    def work() -> None:
        parser = parser_of(f"simulations.examples.{program}", description)
        parser.add_argument("file", type=Path, metavar="FILE", help="the SVG file to write")
        file: Path = parser.parse_args().file
        file.write_text(follow_mode(to_svg_file(draw(), "heterofl-flwr", transparent=True).decode()), encoding="utf-8")

    return status_of(program, work)


def follow_mode(svg: str) -> str:
    """Return an SVG picture whose colours follow the reader's light or dark mode; numbers on dark shades stay white."""
    used = {name: pair for name, pair in COLOURS.items() if pair[0] in svg and name != "paper"}
    light, dark = (" ".join(f"--{name}: {pair[mode]};" for name, pair in used.items()) for mode in (0, 1))
    for name, (colour, _) in used.items():
        svg = svg.replace(colour, f"var(--{name})")
    rules = f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return svg.replace("</style>", f" {rules}</style>", 1)
