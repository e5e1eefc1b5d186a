"""Draw the rings of secure aggregation: ``python -m simulations.examples.ring_picture docs/figures/rings.svg``."""

import sys

import numpy as np
from matplotlib.axes import Axes as Place
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from heterofl_flwr.core import Plan
from heterofl_flwr.report.drawing import COLOURS
from heterofl_flwr.secure.overlaps import as_state, count_holders, whole
from simulations.examples.plan_picture import WEIGHT, plans, shades
from simulations.svg import add_bar, label, write_picture

EACH, LEAST = 2, 3  # clients of each level; fewest clients of a ring
SHOWN, _CLOSED = "ace", "#d9822b"


def draw() -> Figure:
    """Draw the rings of a weight for ten clients, and the number of peers in the masks of three of the clients."""
    levels = plans()
    slices, clients, colours = list(levels.values()), [EACH] * len(levels), shades(EACH * len(levels))
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    grid = figure.add_gridspec(1, 4, width_ratios=(1.5, 1, 1, 1))
    rings = _counts(whole(slices), slices, clients)
    closed = np.ma.masked_where(rings >= LEAST, np.ones_like(rings))
    place = figure.add_subplot(grid[0, 0])
    image = place.imshow(rings, colours, interpolation="nearest", aspect="auto", vmin=0.5, vmax=rings.max() + 0.5)
    place.imshow(closed, ListedColormap([_CLOSED]), interpolation="nearest", aspect="auto")
    below = f"orange: under {LEAST}, so nobody unmasks it"
    _label(place, "rings: how many clients hold each entry", below, rings.shape)
    for number, level in enumerate(SHOWN, 1):
        inside = _counts(levels[level], slices, clients)
        masks = np.full(rings.shape, np.nan)
        masks[: inside.shape[0], : inside.shape[1]] = inside - 1
        place = figure.add_subplot(grid[0, number])
        place.imshow(masks, colours, interpolation="nearest", aspect="auto", vmin=0.5, vmax=rings.max() + 0.5)
        _label(place, f"a client of level {level}", f"sends {inside.shape[0]} x {inside.shape[1]}", rings.shape)
    add_bar(figure, image, ax=figure.axes, ticks=range(1, EACH * len(slices) + 1), fraction=0.03, pad=0.01)
    title = f"{WEIGHT}, {EACH} clients of each level: the rings, and with how many others a client masks each entry"
    figure.suptitle(title, fontsize=11, color=COLOURS["ink"])
    return figure


def _counts(own: Plan, slices: list[Plan], clients: list[int]) -> NDArray[np.int32]:
    """Return the number of holders of each entry of a slice, by row and column; kernels are never sliced."""
    return as_state(count_holders(own, slices, clients), own)[WEIGHT][:, :, 0, 0].numpy()


def _label(place: Place, title: str, below: str, shape: tuple[int, ...]) -> None:
    """Write a title and a note below, and scale the axes to the shape of the whole weight."""
    place.set_xlim(-0.5, shape[1] - 0.5)
    place.set_ylim(shape[0] - 0.5, -0.5)
    label(place, title, below)


def main() -> int:
    return write_picture("ring_picture", __doc__, draw)


if __name__ == "__main__":
    sys.exit(main())
