"""How the slices of clients lie in one layer of the global model, drawn from real plans."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes as Place
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import nn

from heterofl_flwr.core.axes import Axis, positions
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.nn.build import new_model
from heterofl_flwr.report.drawing import SMALL, light

Counts = NDArray[np.int64]
Matrix = tuple[Axis, Axis]  # the first two axes of a weight: outputs and inputs

_SLICE = ListedColormap(["#f1f3f6", "#7d92e6"])
_PALE, _DEEP = "#dfe6fb", "#2b43ab"


def draw_plans(build: Callable[[float], nn.Module], rates: Sequence[float], parameter: str | None = None) -> Figure:
    """Return a picture of one weight matrix: each rate's slice, and how many clients hold each entry of the whole.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        From a rate to a model.
    rates : Sequence[float]
        The rate of each client; a rate that occurs twice is two clients.
    parameter : str | None
        The layer's weight; by default the largest one that is cut both ways.
    """
    if not rates:
        raise ConfigError("a picture of plans needs the rate of at least one client")
    clients = Counter(sorted(rates, reverse=True))
    models = {rate: new_model(build, rate) for rate in clients}
    plans = {rate: Plan.of(models[max(rates)], model) for rate, model in models.items()}
    name = _find_weight(plans, parameter)
    slices = {rate: (plan.axes[name][0], plan.axes[name][1]) for rate, plan in plans.items()}
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    halves = figure.add_gridspec(1, 2, width_ratios=(1.15, 1))
    across = math.ceil(math.sqrt(len(slices)))
    grid = halves[0, 0].subgridspec(math.ceil(len(slices) / across), across)
    for number, (rate, (row, column)) in enumerate(slices.items()):
        place = figure.add_subplot(grid[divmod(number, across)])
        held = count_holders({rate: (row, column)}, {rate: 1})
        place.imshow(held, _SLICE, aspect="auto", interpolation="nearest", vmin=0, vmax=1)
        number_of = f"{clients[rate]} client{'s' if clients[rate] > 1 else ''}"
        _label(place, f"{level_name(rate)}: {number_of}", f"{row.kept} x {column.kept}")
    _draw_whole(figure, figure.add_subplot(halves[0, 1]), slices, clients)
    rows, columns = slices[max(rates)]
    title = f"{name}: {rows.full} x {columns.full}, cut by the plans of {clients.total()} clients"
    figure.suptitle(title, fontsize=11, color=light("ink"))
    return figure


def count_holders(slices: Mapping[float, Matrix], clients: Mapping[float, int]) -> Counts:
    """Return, for each entry of the matrix, how many clients hold it."""
    rows, columns = next(iter(slices.values()))
    counts = np.zeros((rows.full, columns.full), dtype=np.int64)
    for rate, axes in slices.items():
        counts[np.ix_(*(sorted(positions(axis)) for axis in axes))] += clients[rate]
    return counts


def _draw_whole(figure: Figure, place: Place, slices: Mapping[float, Matrix], clients: Mapping[float, int]) -> None:
    """Draw the whole matrix, coloured by the number of holders; slices that are blocks have a border and a label."""
    counts = count_holders(slices, clients)
    steps = np.unique(counts).tolist()
    shades = np.searchsorted(steps, counts)  # few numbers occur, so each has a shade of its own
    colours = LinearSegmentedColormap.from_list("holders", [_PALE, _DEEP])(np.linspace(0, 1, len(steps)))
    image = place.imshow(shades, ListedColormap(colours), interpolation="nearest", aspect="auto")
    image.set_clim(-0.5, len(steps) - 0.5)
    bar = figure.colorbar(image, ax=place, ticks=range(len(steps)), fraction=0.05, pad=0.03)
    bar.ax.set_yticks(range(len(steps)), [str(step) for step in steps])
    bar.ax.tick_params(labelsize=SMALL, length=0, labelcolor=light("ink"))
    bar.outline.set_visible(False)
    for row, column in slices.values():
        if any(axis.index is not None or axis.parts > 1 for axis in (row, column)):
            continue
        place.add_patch(Rectangle((-0.5, -0.5), column.kept, row.kept, fill=False, edgecolor="white", linewidth=1.2))
        if min(row.kept / row.full, column.kept / column.full) >= 0.06:
            held = int(counts[row.kept - 1, column.kept - 1])
            at = (column.kept - 0.5 - 0.012 * column.full, row.kept - 0.5 - 0.012 * row.full)
            colour = "white" if steps.index(held) >= len(steps) / 2 else _DEEP  # legible on the shades in dark mode too
            place.text(*at, str(held), ha="right", va="bottom", fontsize=SMALL, color=colour)
    _label(place, "the global model", "how many clients hold each entry")


def _label(place: Place, title: str, below: str) -> None:
    """Write a title and a note below, without ticks."""
    place.set_title(title, fontsize=9.5, color=light("ink"))
    place.set_xlabel(below, fontsize=SMALL, color=light("muted"))
    place.set_box_aspect(1)
    place.set_xticks([])
    place.set_yticks([])
    place.spines[:].set_color(light("grid"))


def _find_weight(plans: Mapping[float, Plan], parameter: str | None) -> str:
    smallest = plans[min(plans)].axes
    weights = {name: axes for name, axes in smallest.items() if len(axes) > 1 and axes[0].full > 1 < axes[1].full}
    if parameter is not None and parameter not in weights:
        raise ConfigError(f"{parameter!r} is no weight matrix of the model; expected one of {', '.join(weights)}")
    if not weights:
        raise ConfigError("the model has no weight matrix to draw")
    cut = [name for name, axes in weights.items() if all(axis.kept < axis.full for axis in axes[:2])]
    return parameter or max(cut or weights, key=lambda name: math.prod(axis.full for axis in weights[name]))
