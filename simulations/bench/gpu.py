"""A GPU: whole rounds with each engine on LocalGrid, and on RayGrid.

A round: two clients of each level a to e train the paper's PreResNet18, each 250 steps of ten random images (500
images, five epochs). Each measurement is a ``heterofl run`` in a process of its own, so slices, messages and averages
are included. As all begin alike, they must report nearly the same training loss.

Needs a CUDA device. ``--device cpu --steps 1 --rounds 1`` tries the code anywhere, in minutes; such times say nothing.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import get_args

import torch

from heterofl_flwr.core import LEVELS
from heterofl_flwr.data import Dataset, Split
from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.nn import PAPER, profile
from heterofl_flwr.runs import RunFolder
from heterofl_flwr.training.device import Precision, resolve_device
from simulations.bench.measure import Goal, output_of

ROUNDS, STEPS, BATCH, CLIENTS = 400, 250, 10, 10
IMAGES = "HETEROFL_BENCH_IMAGES"
REPOSITORY = Path(__file__).parents[2]
SIDES = {
    "LocalGrid, engine plain": ("local", "plain"),
    "LocalGrid, engine cohort": ("local", "cohort"),
    "LocalGrid, engine graph": ("local", "graph"),
    "RayGrid, engine auto": ("ray", "auto"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each side, after one to warm up")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each client in a round")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the code")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="of convolutions")
    parser.add_argument(
        "--grids", nargs="+", choices=["local", "ray"], default=["local", "ray"], help="what to measure"
    )


def run(options: argparse.Namespace) -> list[Goal]:
    on_gpu = resolve_device(options.device).type == "cuda"
    work = tera_flop(options.steps)
    print(
        f"{options.steps} steps of {BATCH} random images, {options.precision}; {options.device}; median of "
        f"{options.rounds} rounds after one; a round is {work:.3g} TFLOP\n\n"
        f"{'':<26}{'s a round':>10}{f'{ROUNDS} rounds':>14}{'TFLOP/s':>9}{'loss':>8}",
        flush=True,
    )
    seconds, losses = [], []
    for name, (grid, engine) in SIDES.items():
        if grid not in options.grids or (engine == "graph" and not on_gpu):
            continue
        try:
            each, loss = measure(grid, engine, options)
        except HeteroFLError as error:  # the others are measured all the same
            each = loss = math.nan
            print(f"{name} failed: {error}")
        print(f"{name:<26}{each:>10.3f}{ROUNDS * each / 60:>10.1f} min{work / each:>9.2f}{loss:>8.3f}", flush=True)
        seconds.append(each)
        losses.append(loss)
    failed = sum(map(math.isnan, seconds))
    goals = [Goal("sides that failed", failed, most=0)]
    if not failed:
        goals.append(Goal("difference of the losses, relative", max(losses) / min(losses) - 1, most=0.05))
        if on_gpu and options.steps == STEPS:
            goals.append(Goal(f"minutes of {ROUNDS} rounds without evaluation", ROUNDS * min(seconds) / 60, most=5))
    return goals


def measure(grid: str, engine: str, options: argparse.Namespace) -> tuple[float, float]:
    """Return the median seconds of a run's rounds but for the first, and its loss in the first."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        output_of(
            [sys.executable, "-m", "heterofl_flwr", *list_arguments(grid, engine, options, out)],
            cwd=REPOSITORY,  # where clients find the function that makes the data
            env={**os.environ, IMAGES: str(BATCH * options.steps // count_epochs(options.steps))},
        )
        history = RunFolder(out).history()
    return statistics.median(record.seconds for record in history[1:]), history[0].train["loss"]


def list_arguments(grid: str, engine: str, options: argparse.Namespace, out: Path) -> list[str]:
    """Return what ``heterofl`` is asked for: all clients train in each round, and none is evaluated."""
    settings = {
        "data.name": "simulations.bench.gpu:images",
        "model.name": "preresnet18",
        "model.norm": "sbn",
        "assignment": "fix",
        "sample.fraction": 1.0,
        "train.lr": 0.1,
        "train.epochs": count_epochs(options.steps),
        "train.batch-size": BATCH,
        "train.precision": options.precision,
        "evaluate.every": 0,
        "engine.name": engine,
        "engine.device": options.device,
        "run.callbacks": "",
    }
    how = ["--grid", grid, *(["--parallel", str(CLIENTS)] if grid == "ray" else [])]
    what = ["--clients", str(CLIENTS), "--rounds", str(options.rounds + 1), "--mix", "a1-b1-c1-d1-e1"]
    sets = (word for key, value in settings.items() for word in ("--set", f"{key}={value}"))
    return ["run", *how, *what, "--out", str(out), *sets]


def count_epochs(steps: int) -> int:
    """Return the paper's five passes over a client's images, or one where the steps cannot be cut in five."""
    return 1 if steps % 5 else 5


def images() -> Dataset:
    """Return random images for the setting ``data.name``; the environment has the number of each client."""
    generator, splits = torch.Generator().manual_seed(0), []
    for number in (CLIENTS * int(os.environ[IMAGES]), 100):
        inputs = torch.randn(number, 3, 32, 32, generator=generator)
        splits.append(Split(inputs, torch.randint(10, (number,), generator=generator)))
    return Dataset("random images", splits[0], splits[1], 10, "crop-flip")


def tera_flop(steps: int) -> float:
    """Return the floating point operations of a round, in 10^12.

    A multiplication with addition counts as two operations, and a step as three forward passes.
    """
    setup = PAPER["cifar10"]
    with torch.device("meta"):
        macs = sum(profile(setup.build()(rate), setup.example()).macs for rate in LEVELS.values())
    return CLIENTS / len(LEVELS) * macs * 2 * 3 * BATCH * steps / 1e12
