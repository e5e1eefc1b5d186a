"""Draw the picture of the README: ``python -m simulations.examples.plan_picture docs/figures/plans.svg``."""

import sys
from pathlib import Path

from heterofl_flwr.core import LEVELS
from heterofl_flwr.nn import PAPER
from heterofl_flwr.report import draw_plans
from heterofl_flwr.report.drawing import to_svg_file
from simulations.examples.light_and_dark import follow_mode


def main(path: str) -> None:
    figure = draw_plans(PAPER["mnist"].build(), list(LEVELS.values()))
    svg = to_svg_file(figure, "heterofl-flwr", transparent=True).decode()
    Path(path).write_text(follow_mode(svg), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
