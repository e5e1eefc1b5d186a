"""Draw the README's picture: ``python -m simulations.examples.plan_picture docs/figures/plans.svg``."""

import sys

import matplotlib as mpl

from heterofl_flwr.core import LEVELS
from heterofl_flwr.nn import PAPER
from heterofl_flwr.report import draw_plans


def main(path: str) -> None:
    # Without a date and with ids that do not change, the same plans give the same file.
    mpl.rcParams["svg.hashsalt"] = "heterofl-flwr"
    draw_plans(PAPER["mnist"].build(), list(LEVELS.values())).savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
