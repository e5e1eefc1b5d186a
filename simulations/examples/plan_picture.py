"""Draw the picture of the README: ``python -m simulations.examples.plan_picture docs/figures/plans.svg``."""

import sys

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from heterofl_flwr.core import LEVELS, Plan
from heterofl_flwr.nn import PAPER
from heterofl_flwr.nn.build import new_model
from heterofl_flwr.report.drawing import COLOURS
from simulations.examples.light_and_dark import add_bar, label, write_picture

WEIGHT = "features.conv4.weight"
_SLICE = ListedColormap(["#7d92e600", "#7d92e6"])
_PALE, _DEEP = "#dfe6fb", "#2b43ab"


def draw() -> Figure:
    """Draw a weight of the paper's MNIST model: the slice of each level, and the number of holders of each entry."""
    build = PAPER["mnist"].build()
    full = new_model(build, 1.0)
    plans = {level: Plan.of(full, new_model(build, rate)) for level, rate in LEVELS.items()}
    kept = {level: (plan.axes[WEIGHT][0].local_size, plan.axes[WEIGHT][1].local_size) for level, plan in plans.items()}
    rows, columns = kept["a"]
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")  # not wider, so that the text is legible on a phone
    halves = figure.add_gridspec(1, 2, width_ratios=(1.15, 1))
    grid = halves[0, 0].subgridspec(2, 3)
    counts = np.zeros((rows, columns), dtype=np.int64)
    for number, (level, (height, width)) in enumerate(kept.items()):
        place = figure.add_subplot(grid[divmod(number, 3)])
        held = np.zeros_like(counts)
        held[:height, :width] = 1
        place.imshow(held, _SLICE, aspect="auto", interpolation="nearest", vmin=0, vmax=1)
        place.set_box_aspect(1)
        label(place, f"{level}: 1 client", f"{height} x {width}")
        counts += held
    place = figure.add_subplot(halves[0, 1])
    colours = LinearSegmentedColormap.from_list("holders", [_PALE, _DEEP])(np.linspace(0, 1, len(kept)))
    image = place.imshow(counts, ListedColormap(colours), interpolation="nearest", aspect="auto")
    image.set_clim(0.5, len(kept) + 0.5)
    add_bar(figure, image, ax=place, ticks=range(1, len(kept) + 1), fraction=0.05, pad=0.03)
    for holders, (height, width) in enumerate(kept.values(), 1):
        place.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="white", linewidth=1.2))
        at = (width - 0.5 - 0.012 * columns, height - 0.5 - 0.012 * rows)
        colour = "white" if holders - 1 >= len(kept) / 2 else _DEEP  # legible on the shades in dark mode too
        place.text(*at, str(holders), ha="right", va="bottom", fontsize=8, color=colour)
    place.set_box_aspect(1)
    label(place, "the global model", "how many clients hold each entry")
    title = f"{WEIGHT}: {rows} x {columns}, cut by the plans of {len(kept)} clients"
    figure.suptitle(title, fontsize=11, color=COLOURS["ink"])
    return figure


def main() -> int:
    return write_picture("plan_picture", __doc__, draw)


if __name__ == "__main__":
    sys.exit(main())
