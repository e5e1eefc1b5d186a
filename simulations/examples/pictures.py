"""Draw a picture of the pages: ``python -m simulations.examples.pictures plans docs/figures/plans.svg``."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes as Place
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn

from heterofl_flwr import elastic, lora, shallow
from heterofl_flwr.core import LEVELS, Plan
from heterofl_flwr.core.axes import positions
from heterofl_flwr.core.slice_rules import SliceRule, make_slice_function
from heterofl_flwr.nn import PAPER
from heterofl_flwr.nn.depth import Rates
from heterofl_flwr.nn.models import Build
from heterofl_flwr.report.drawing import COLOURS, SMALL
from simulations.program import parser_of, start
from simulations.svg import to_svg

WEIGHT = "features.conv4.weight"
EACH, LEAST = 2, 3  # clients of each level; fewest clients of a ring
SHOWN = "ace"
WIDTH, BLOCKS, RANK = 16, 4, 8
RATES = (1.0, 0.5, 0.25)
ROUND = 6
_PALE, _MIDDLE, _DEEP, _CLOSED = "#dfe6fb", "#7d92e6", "#2b43ab", "#d9822b"
_SLICE = ListedColormap(["#7d92e600", _MIDDLE])
Picture = NDArray[np.float64]
Titled = tuple[Figure, str]


def label(place: Place, title: str, below: str) -> None:
    """Write a title and a note below into axes, and remove their ticks."""
    place.set_title(title, fontsize=9.5, color=COLOURS["ink"])
    place.set_xlabel(below, fontsize=SMALL, color=COLOURS["muted"])
    place.set(xticks=[], yticks=[])
    place.spines[:].set_color(COLOURS["grid"])


def add_bar(figure: Figure, image: AxesImage, **options: Any) -> None:
    """Add a colour bar."""
    bar = figure.colorbar(image, **options)
    bar.ax.tick_params(labelsize=SMALL, length=0, labelcolor=COLOURS["ink"])
    bar.outline.set_visible(False)


def level_plans() -> dict[str, Plan]:
    """Return the plan of ``WEIGHT`` at each level."""
    plans = zip(LEVELS, _plans(PAPER["mnist"].build(), LEVELS.values()), strict=True)
    return {level: Plan({WEIGHT: plan.axes[WEIGHT]}) for level, plan in plans}


def shades(number: int) -> ListedColormap:
    """Return a number of colours, from pale to dark."""
    return ListedColormap(LinearSegmentedColormap.from_list("holders", [_PALE, _DEEP])(np.linspace(0, 1, number)))


def draw_plans() -> Titled:
    """Draw a weight of the paper's MNIST model: the slice of each level, and the number of holders of each entry."""
    plans = level_plans()
    kept = {level: _kept(plan) for level, plan in plans.items()}
    rows, columns = kept["a"]
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")  # not wider, so that the text is legible on a phone
    halves = figure.add_gridspec(1, 2, width_ratios=(1.15, 1))
    grid = halves[0, 0].subgridspec(2, 3)
    for number, (level, (height, width)) in enumerate(kept.items()):
        place = figure.add_subplot(grid[divmod(number, 3)])
        held = _count([plans[level]], WEIGHT)
        place.imshow(held, _SLICE, aspect="auto", interpolation="nearest", vmin=0, vmax=1)
        place.set_box_aspect(1)
        label(place, f"{level}: 1 client", f"{height} x {width}")
    place = figure.add_subplot(halves[0, 1])
    counts = _count(list(plans.values()), WEIGHT)
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
    return figure, f"{WEIGHT}: {rows} x {columns}, cut by the plans of {len(kept)} clients"


def draw_rings() -> Titled:
    """Draw the rings of a weight for ten clients, and the number of peers in the masks of three of the clients."""
    plans = level_plans()
    colours = shades(EACH * len(plans))
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    place, *others = figure.subplots(1, 1 + len(SHOWN), width_ratios=(1.5, 1, 1, 1))
    rings = EACH * _count(list(plans.values()), WEIGHT)
    closed = np.ma.masked_where(rings >= LEAST, np.ones_like(rings))
    image = place.imshow(rings, colours, interpolation="nearest", aspect="auto", vmin=0.5, vmax=rings.max() + 0.5)
    place.imshow(closed, ListedColormap([_CLOSED]), interpolation="nearest", aspect="auto")
    label(place, "rings: how many clients hold each entry", f"orange: under {LEAST}, so nobody unmasks it")
    for place, level in zip(others, SHOWN, strict=True):
        height, width = _kept(plans[level])
        masks = np.where(_count([plans[level]], WEIGHT) > 0, rings - 1, np.nan)
        place.imshow(masks, colours, interpolation="nearest", aspect="auto", vmin=0.5, vmax=rings.max() + 0.5)
        label(place, f"a client of level {level}", f"sends {height} x {width}")
    add_bar(figure, image, ax=figure.axes, ticks=range(1, EACH * len(plans) + 1), fraction=0.03, pad=0.01)
    what = "the rings, and with how many others a client masks each entry"
    return figure, f"{WEIGHT}, {EACH} clients of each level: {what}"


def _kept(plan: Plan) -> tuple[int, int]:
    """Return the number of rows and of columns of ``WEIGHT`` that a slice keeps."""
    rows, columns, *_ = plan.axes[WEIGHT]
    return rows.local_size, columns.local_size


class Stack(nn.Module):
    """A model of blocks of equal width."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
        self.last = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Run the model."""
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.last(x)  # type: ignore[no-any-return]


def draw_parts() -> Titled:
    """Draw how many of three clients hold each entry, for each kind of slicing."""
    from peft import LoraConfig, get_peft_model  # here, because it takes seconds to load

    example = torch.zeros(2, 4)
    both: dict[str | float, Rates] = {1.0: (1.0, 1.0), 0.5: (0.75, 0.75), 0.25: (0.5, 0.5)}
    config = LoraConfig(r=RANK, target_modules=[f"blocks.{number}" for number in range(BLOCKS)])
    names = [f"blocks.{number}.weight" for number in range(BLOCKS)]
    adapters = [f"blocks.{number}.lora_{factor}" for number in (0, 1) for factor in "BA"]
    builds: dict[str, tuple[Build, list[str]]] = {
        "width: fewer channels": (elastic(Stack(), example), names),
        "depth: fewer blocks": (shallow(Stack(), "blocks.*", example), names),
        "width and depth": (shallow(elastic(Stack(), example), "blocks.*", example, levels=both), names),
        "rank: smaller adapters": (lora(get_peft_model(Stack(), config)), adapters),
    }
    rules: tuple[SliceRule, ...] = ("prefix", "rolling", "random-level", "random-client")
    figure = Figure(figsize=(9.6, 4.9), layout="constrained")
    places = figure.subplots(2, 4)
    for place, (title, (build, shown)) in zip(places[0], builds.items(), strict=True):
        plans = _plans(build)
        matrices = [_count(plans, _find(plans[0], name)) for name in shown]
        _draw(place, _side_by_side(matrices), title, "four blocks" if shown is names else "B and A of two blocks")
    for place, rule in zip(places[1], rules, strict=True):
        plans = [
            plan.sliced(make_slice_function(rule, seed=0, server_round=ROUND, rate=rate, partition=number))
            for number, (plan, rate) in enumerate(zip(_plans(elastic(Stack(), example)), RATES, strict=True))
        ]
        _draw(place, _count(plans, names[0]), rule, f"one block in round {ROUND}")
    return figure, "Three clients of rates 1, 0.5 and 0.25: how many hold each entry (1, 2 or 3, from pale to dark)"


def _plans(build: Build, rates: Iterable[float] = RATES) -> list[Plan]:
    with torch.random.fork_rng(devices=[]):
        full = build(1.0)
        return [Plan.of(full, build(rate)) for rate in rates]


def _find(plan: Plan, name: str) -> str:
    """Return the parameter whose name contains ``name``; peft inserts the adapter's name into it."""
    return next(one for one in plan.axes if name in one)


def _count(plans: Sequence[Plan], name: str) -> Picture:
    """Return the number of plans that hold each entry of a parameter, by row and column; kernels are never sliced."""
    counts = np.zeros([axis.size for axis in plans[0].axes[name]])
    for plan in plans:
        if name in plan.axes:  # a model of fewer blocks lacks it
            counts[np.ix_(*(sorted(positions(axis)) for axis in plan.axes[name]))] += 1
    return counts.reshape(*counts.shape[:2], -1)[:, :, 0]


def _side_by_side(matrices: Sequence[Picture]) -> Picture:
    """Return one matrix with the given ones in two columns, with gaps between them."""
    height, width = (1 + max(one.shape[axis] for one in matrices) for axis in (0, 1))
    gaps = [((0, height - one.shape[0]), (0, width - one.shape[1])) for one in matrices]
    padded = [np.pad(one, gap, constant_values=np.nan) for one, gap in zip(matrices, gaps, strict=True)]
    return np.block([padded[number : number + 2] for number in range(0, len(padded), 2)])[:-1, :-1]


def _draw(place: Place, counts: Picture, title: str, below: str) -> None:
    place.imshow(counts, ListedColormap([_PALE, _MIDDLE, _DEEP]), interpolation="nearest", vmin=0.5, vmax=3.5)
    label(place, title, below)
    place.spines[:].set_visible(False)


PICTURES = {"plans": draw_plans, "rings": draw_rings, "parts": draw_parts}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("simulations.examples.pictures", __doc__)
    parser.add_argument("picture", choices=PICTURES, help="what to draw")
    parser.add_argument("file", type=Path, metavar="FILE", help="the SVG file to write")
    return start(parser, write, arguments)


def write(options: argparse.Namespace) -> None:
    """Write a picture."""
    figure, title = PICTURES[options.picture]()
    figure.suptitle(title, fontsize=11, color=COLOURS["ink"])
    options.file.write_bytes(to_svg(figure, "heterofl-flwr", modes=True))


if __name__ == "__main__":
    raise SystemExit(main())
