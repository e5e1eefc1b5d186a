"""Draw which part of a model a client holds: ``python -m simulations.examples.part_picture docs/figures/parts.svg``."""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes as Place
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from heterofl_flwr import Plan, elastic, lora, shallow
from heterofl_flwr.core.axes import positions
from heterofl_flwr.core.slice_rules import SliceRule, make_slice_function
from heterofl_flwr.nn.depth import Rates
from heterofl_flwr.nn.models import Build
from heterofl_flwr.report.drawing import COLOURS
from simulations.svg import label, write_picture

WIDTH, BLOCKS, RANK = 16, 4, 8
RATES = (1.0, 0.5, 0.25)
ROUND = 6
_SHADES = ListedColormap(["#dfe6fb", "#7d92e6", "#2b43ab"])
Picture = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


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
        out: Tensor = self.last(x)
        return out


def draw_parts() -> Figure:
    """Return the picture: how many of three clients hold each entry, for each kind of slicing."""
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
    title = "Three clients of rates 1, 0.5 and 0.25: how many hold each entry (1, 2 or 3, from pale to dark)"
    figure.suptitle(title, fontsize=11, color=COLOURS["ink"])
    return figure


def _plans(build: Build) -> list[Plan]:
    with torch.random.fork_rng(devices=[]):
        full = build(1.0)
        return [Plan.of(full, build(rate)) for rate in RATES]


def _find(plan: Plan, name: str) -> str:
    """Return the parameter whose name contains ``name``; peft inserts the adapter's name into it."""
    return next(one for one in plan.axes if name in one)


def _count(plans: Sequence[Plan], name: str) -> Picture:
    """Return the number of plans that hold each entry of a parameter."""
    counts = np.zeros([axis.size for axis in plans[0].axes[name]])
    for plan in plans:
        if name in plan.axes:  # a model of fewer blocks lacks it
            counts[np.ix_(*(sorted(positions(axis)) for axis in plan.axes[name]))] += 1
    return counts


def _side_by_side(matrices: Sequence[Picture]) -> Picture:
    """Return one matrix with the given ones in two columns, with gaps between them."""
    height, width = (1 + max(one.shape[axis] for one in matrices) for axis in (0, 1))
    gaps = [((0, height - one.shape[0]), (0, width - one.shape[1])) for one in matrices]
    padded = [np.pad(one, gap, constant_values=np.nan) for one, gap in zip(matrices, gaps, strict=True)]
    return np.block([padded[number : number + 2] for number in range(0, len(padded), 2)])[:-1, :-1]


def _draw(place: Place, counts: Picture, title: str, below: str) -> None:
    place.imshow(counts, _SHADES, interpolation="nearest", vmin=0.5, vmax=3.5)
    label(place, title, below)
    place.spines[:].set_visible(False)


def main() -> int:
    return write_picture("part_picture", __doc__, draw_parts)


if __name__ == "__main__":
    sys.exit(main())
