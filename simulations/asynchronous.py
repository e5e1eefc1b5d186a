"""Compare synchronous rounds with asynchronous steps, in simulated time, and compare exponents of staleness weights.

A hundred clients of five levels train on 10,000 images of MNIST with 14 x 14 pixels, ten at any time. The speed of a
device depends on its level, or is independent of it. Accuracies are those of each level's model on every second image
of MNIST's test set, with batch norm moments of 2,000 training images. Widths, learning rate and epochs are those of
``experiment=search``; these and the exponent (``--study staleness``) were chosen on held-out training images. Each run
is a line in ``cells.jsonl`` of the output folder, and is not repeated. The table and the figure are made from these
lines.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from matplotlib.figure import Figure
from torch import Tensor

from heterofl_flwr import Buffered, Devices, Evaluation, HeteroFL, LocalGrid, Sampling, SimulatedDevices, Training
from heterofl_flwr.app import client_app
from heterofl_flwr.app.workload import Workload, load_workload
from heterofl_flwr.common.files import write_atomic
from heterofl_flwr.core.formatting import render
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.grids.device_costs import EDGE, DeviceProfile, TrainingCost
from heterofl_flwr.report.drawing import COLOURS, SIZE, SMALL, series, style_axes
from simulations.bench.measure import describe_machine
from simulations.program import parser_of, quietly, run_cells, start, text_beside
from simulations.results.statistics import show_difference, summarise
from simulations.robust import accuracy
from simulations.svg import to_svg

PROGRAM = "simulations.asynchronous"
CLIENTS, ROUNDS = 100, 24
EVERY = 3  # rounds from one evaluation to the next; a round counts as two steps
MEASURED = 2000  # training images for moments
SPLITS = ("dirichlet-0.3", "non-iid-2")
LEVELS = ("a", "b", "c", "d", "e")
SMOOTHED = 3  # number of evaluations in the moving mean of accuracies, for times to an accuracy

SETTINGS: Mapping[str, float | str] = {
    "model.name": "cnn",
    "model.hidden": "16,32,64,128",
    "mix": "a1-b1-c1-d1-e1",
    "train.lr": 0.05,
    "train.epochs": 2,
    "engine.device": "cpu",
}
"""Settings of all runs."""


RELIABLE = {level: replace(own, available=1.0, drop_out=0.0, least_work=1.0) for level, own in EDGE.items()}
"""Profiles of devices that are always available, so that they differ only in speed."""

PACES: Mapping[str, Mapping[str, DeviceProfile]] = {
    # Devices of large models are faster: training at level a takes about 3.5 times as long as at level d.
    "by level": RELIABLE,
    # All devices are telephones, whose speed varies by a factor of about e in each training: level a takes 90 times as
    # long as level e.
    "alike": dict.fromkeys(EDGE, replace(RELIABLE["c"], jitter=1.0)),
}
"""Profile of each level's devices, by the relation of speed and level."""

STEPS = Buffered(size=5, concurrency=10)
METHODS: Mapping[str, tuple[float, Buffered]] = {
    "rounds": (0.0, Buffered()),
    "rounds, spare": (0.3, Buffered()),
    "steps, one clock": (0.0, replace(STEPS, clocks="model")),
    "steps": (0.0, STEPS),
    "steps, quota": (0.0, replace(STEPS, quota=1)),
}
"""Fraction of spare clients and asynchronous options: rounds of ten, or steps of five replies while ten train."""

EXPONENTS = {f"exponent {own:g}": (0.0, replace(STEPS, staleness=own)) for own in (0.0, 0.5, 1.0)}


@dataclass(frozen=True)
class Study:
    """Methods to compare; the first is the reference of the others."""

    data: str
    seeds: Sequence[int]
    methods: Mapping[str, tuple[float, Buffered]]
    compared: Sequence[tuple[str, str]] = ()  # over all splits and devices


_IMAGES = "heterofl_flwr.experiments.small_mnist"
_STEPS = (("steps", "steps, one clock"), ("steps, quota", "steps"))
_STALER = (("exponent 0.5", "exponent 0"), ("exponent 1", "exponent 0.5"))
STUDIES: Mapping[str, Study] = {
    "methods": Study(f"{_IMAGES}:with_test_images", (0, 1, 2), METHODS, _STEPS),
    "staleness": Study(f"{_IMAGES}:load", (10, 11), EXPONENTS, _STALER),
}


@dataclass(frozen=True)
class Cell:
    split: str
    pace: str
    seed: int
    method: str


def cells(study: Study) -> Iterator[Cell]:
    """Yield all cells, which are single runs. Cells that are compared with one another are consecutive."""
    for seed, split, pace, method in itertools.product(study.seeds, SPLITS, PACES, study.methods):
        yield Cell(split, pace, seed, method)


def run_cell(cell: Cell, study: Study, rounds: int = ROUNDS) -> list[dict[str, float]]:
    """Run a cell; return the simulated seconds and the accuracy of each level every few rounds.

    Runs of steps get 1.5 times as many replies as runs of rounds, because they may need more.
    """
    config = {**SETTINGS, "data.name": study.data, "data.split": cell.split, "seed": cell.seed}
    workload, (spare, steps) = load_workload(config), study.methods[cell.method]
    train = workload.settings.train
    strategy = HeteroFL(
        workload.build,
        workload.mix,
        seed=cell.seed,
        fraction_train=STEPS.concurrency / CLIENTS,
        fraction_evaluate=0.0,
        min_available_nodes=CLIENTS,
        training=Training(learning_rate=train.learning_rate),
        sampling=Sampling(spare=spare),
        asynchronous=steps,
        evaluation=Evaluation(every=2 * EVERY if steps.size else EVERY),
    )
    found: list[dict[str, float]] = []
    devices = Devices(PACES[cell.pace], TrainingCost(workload.build, workload.example(), epochs=train.epochs))
    with LocalGrid(client_app.app, CLIENTS, run_config=config, cohort=workload.cohort) as inner:
        grid = SimulatedDevices(inner, devices)

        def note(server_round: int, arrays: ArrayRecord) -> None:
            if server_round:
                accuracies = level_accuracies(workload, strategy, arrays.to_torch_state_dict())
                found.append({"round": server_round, "simulated": grid.seconds, **accuracies})

        strategy.start(grid, num_rounds=3 * rounds if steps.size else rounds, evaluate_fn=note)
    return found


def level_accuracies(workload: Workload, strategy: HeteroFL, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the accuracy of each level's model on test images."""
    data, plan, rates = workload.dataset, strategy.federation.architecture.plan, workload.mix.rates
    inputs, test = data.train.inputs[:MEASURED], data.test.select(torch.arange(0, len(data.test), 2))
    models = {level_name(rate): (workload.build(rate), plan(rate).extract(state)) for rate in rates}
    return {level: accuracy(*model, inputs, test) for level, model in models.items()}


Curve = Sequence[Mapping[str, float]]
"""The evaluations of a run."""

Curves = Mapping[Cell, Curve]
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def run(options: argparse.Namespace) -> int:
    """Run the cells that have no result yet, and write the table and the figure."""
    study = STUDIES[options.study]

    def work(cell: Cell) -> dict[str, Any]:
        return {"about": describe_machine(), "evaluations": run_cell(cell, study)}

    found = run_cells(options.out / "cells.jsonl", list(cells(study)), work)
    done = {cell: line["evaluations"] for cell, line in found.items()}
    write_atomic(options.out / f"{options.study}.md", page(done, study).encode())
    write_atomic(options.out / f"{options.study}.svg", to_svg(draw(done, study), PROGRAM, modes=True))
    return 0


def smoothed(curve: Curve) -> Array:
    """Return the moving mean over ``SMOOTHED`` evaluations of the levels' mean accuracy, in percent."""
    accuracies = [100 * sum(own[level] for level in LEVELS) / len(LEVELS) for own in curve]
    return np.convolve(accuracies, np.ones(SMOOTHED), "valid") / SMOOTHED


def seconds_to(curve: Curve, accuracy: float) -> float:
    """Return the simulated time at which a run first reaches an accuracy; infinite if it does not."""
    times = (own["simulated"] for own in curve[SMOOTHED - 1 :])
    return next((at for at, own in zip(times, smoothed(curve), strict=True) if own >= accuracy), math.inf)


def share_of_time(curve: Curve, base: Curve) -> str:
    """Return the share of the simulated time of ``base`` after which ``curve`` reaches its final accuracy, as text.

    The text is ``>`` and the share at which ``curve`` ends if it ends before that.
    """
    at, total = seconds_to(curve, smoothed(base)[-1]), base[-1]["simulated"]
    return f"{at / total:.2f}" if math.isfinite(at) else f"> {curve[-1]['simulated'] / total:.2f}"


def at_time(curve: Curve, seconds: float) -> Array:
    """Return each level's accuracy in percent at a simulated time, by linear interpolation between evaluations."""
    times = [own["simulated"] for own in curve]
    return 100 * np.array([np.interp(seconds, times, [own[level] for own in curve]) for level in LEVELS])


def page(found: Curves, study: Study) -> str:
    """Return the page: the table, and the mean differences between pairs of methods over all rows."""
    first, rows = next(iter(study.methods)), []
    gains: dict[tuple[str, str], list[float]] = {pair: [] for pair in study.compared}
    for split, pace in dict.fromkeys((own.split, own.pace) for own in found):
        seeds = sorted({own.seed for own in found if (own.split, own.pace) == (split, pace)})
        curves = {method: [found[Cell(split, pace, seed, method)] for seed in seeds] for method in study.methods}
        ends = [min(own[-1]["simulated"] for own in each) for each in zip(*curves.values(), strict=True)]
        levels = {method: np.array(list(map(at_time, own, ends))) for method, own in curves.items()}  # (seeds, levels)
        means = {method: own.mean(1) for method, own in levels.items()}
        for method, own in curves.items():
            reached = ", ".join(map(share_of_time, own, curves[first]))
            change = "" if method == first else show_difference(summarise(list(means[method] - means[first])), 1)
            each = (f"{accuracy:.0f}" for accuracy in levels[method].mean(0))
            rows.append([f"{split}, {pace}", method, reached, f"{means[method].mean():.1f}", change, *each])
        for one, two in gains:
            gains[one, two] += list(means[one] - means[two])
    header = ["clients and devices", "method", "time to accuracy", "mean", f"less {first}", *LEVELS]
    gained = {" less ".join(pair): summarise(own) for pair, own in gains.items()}
    lines = [f"* {pair}: {show_difference(own, 1)} points, {own.number} pairs" for pair, own in gained.items()]
    text = text_beside(__file__, "asynchronous.md").format(smoothed=SMOOTHED)
    return "\n".join([text, render(header, rows, "markdown"), "", *lines, ""])


def draw(found: Curves, study: Study) -> Figure:
    """Draw the mean of the levels' accuracies over simulated time, averaged over seeds until the first run ends."""
    places = list(dict.fromkeys((own.split, own.pace) for own in found))
    figure = Figure(figsize=(2 * SIZE[0], 2 * SIZE[1]), layout="constrained")
    panels = figure.subplots(len(SPLITS), len(PACES), squeeze=False).flat
    for axes, (split, pace) in zip(panels, places, strict=False):
        for number, method in enumerate(study.methods):
            curves = [found[own] for own in found if (own.split, own.pace, own.method) == (split, pace, method)]
            colour, dash = series(number)
            ends = max(own[0]["simulated"] for own in curves), min(own[-1]["simulated"] for own in curves)
            times = np.linspace(*ends, 51)
            means = [np.mean([at_time(own, at) for own in curves]) for at in times]
            axes.plot(times, means, color=colour, linestyle=dash, label=method)
        style_axes(axes, "simulated seconds", "mean accuracy, %")
        axes.set_title(f"{split}, devices {pace}", fontsize=SMALL, color=COLOURS["ink"])
    figure.axes[1].legend(fontsize=SMALL, frameon=False, labelcolor=COLOURS["ink"])
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(PROGRAM, __doc__)
    parser.add_argument("--out", type=Path, default="runs/asynchronous", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--study", choices=STUDIES, default="methods", help="default: %(default)s")
    with quietly():
        return start(parser, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
