"""Draw the picture of the README: ``python -m simulations.examples.plan_picture docs/figures/plans.svg``."""

import sys

from matplotlib.figure import Figure

from heterofl_flwr.core import LEVELS
from heterofl_flwr.nn import PAPER
from heterofl_flwr.report import draw_plans
from simulations.examples.light_and_dark import write_picture


def draw() -> Figure:
    return draw_plans(PAPER["mnist"].build(), list(LEVELS.values()))


def main() -> int:
    return write_picture("plan_picture", __doc__, draw)


if __name__ == "__main__":
    sys.exit(main())
