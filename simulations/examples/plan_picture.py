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
from simulations.svg import add_bar, label, write_picture

WEIGHT = "features.conv4.weight"
_SLICE = ListedColormap(["#7d92e600", "#7d92e6"])
_PALE, _DEEP = "#dfe6fb", "#2b43ab"


def plans() -> dict[str, Plan]:
    """Return the plan of ``WEIGHT`` at each level."""
    build = PAPER["mnist"].build()
    full = new_model(build, 1.0)
    whole = {level: Plan.of(full, new_model(build, rate)) for level, rate in LEVELS.items()}
    return {level: Plan({WEIGHT: plan.axes[WEIGHT]}) for level, plan in whole.items()}


def shades(number: int) -> ListedColormap:
    """Return so many colours, from pale to dark."""
    return ListedColormap(LinearSegmentedColormap.from_list("holders", [_PALE, _DEEP])(np.linspace(0, 1, number)))


def draw() -> Figure:
    """Draw a weight of the paper's MNIST model: the slice of each level, and the number of holders of each entry."""
    kept = {level: tuple(axis.local_size for axis in plan.axes[WEIGHT][:2]) for level, plan in plans().items()}
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
    image = place.imshow(counts, shades(len(kept)), interpolation="nearest", aspect="auto")
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
