"""Draw the picture of the README: ``python -m simulations.examples.plan_picture docs/figures/plans.svg``."""

import sys
from pathlib import Path

from heterofl_flwr.core import LEVELS
from heterofl_flwr.nn import PAPER
from heterofl_flwr.report import draw_plans
from heterofl_flwr.report.drawing import COLOURS, to_svg_file


def main(path: str) -> None:
    figure = draw_plans(PAPER["mnist"].build(), list(LEVELS.values()))
    svg = to_svg_file(figure, "heterofl-flwr", transparent=True).decode()
    Path(path).write_text(follow_mode(svg), encoding="utf-8")


def follow_mode(svg: str) -> str:
    """Return a picture whose colours follow the reader's light or dark mode; numbers on dark shades stay white."""
    used = {name: pair for name, pair in COLOURS.items() if pair[0] in svg and name != "paper"}
    light, dark = (" ".join(f"--{name}: {pair[mode]};" for name, pair in used.items()) for mode in (0, 1))
    for name, (colour, _) in used.items():
        svg = svg.replace(colour, f"var(--{name})")
    rules = f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return svg.replace("</style>", f" {rules}</style>", 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
