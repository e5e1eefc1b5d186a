"""Draw the picture of the README: ``python -m simulations.examples.plan_picture docs/figures/plans.svg``."""

import sys
from functools import partial

from heterofl_flwr.core import LEVELS
from heterofl_flwr.nn import PAPER
from heterofl_flwr.report import draw_plans
from simulations.examples.light_and_dark import write_picture

if __name__ == "__main__":
    draw = partial(draw_plans, PAPER["mnist"].build(), list(LEVELS.values()))
    sys.exit(write_picture("plan_picture", __doc__, draw))
