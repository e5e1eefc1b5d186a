"""A GPU on CIFAR10: our engines and whole rounds, beside the authors' code.

A round: two clients of each level a to e train the paper's PreResNet18, each 250 steps of ten images (500 images, five
epochs). Engines are called directly; ``LocalGrid`` (with the fastest engine) and Ray (with ten actors) do whole rounds,
slices, messages and averages included, and so do the authors. Static batch norm and the test of the global model are
measured apart; a whole run is 400 rounds with both after every tenth. ``--authors`` names a checkout of the HeteroFL
authors' repository, whose functions then run on the same images; without it, their speed is no part of the verdict,
which then fails. Before anything is timed, the engines must agree.

Needs a CUDA device. ``--device cpu --steps 1 --rounds 1`` tries the code anywhere, in minutes, and judges nothing.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import torch

from heterofl_flwr.data import Split
from heterofl_flwr.nn import collect_moments, with_static_norm
from heterofl_flwr.nn.models import MODELS
from heterofl_flwr.report import RunFolder
from heterofl_flwr.training import ENGINES, evaluate_both, input_batches
from heterofl_flwr.training.device import Precision
from simulations.bench.gpu_task import BATCH, CLIENTS, MIX, RATES, Engine, Experiment, check_equal, timed
from simulations.bench.measure import print_verdict
from simulations.reference.authors import Authors

ROUNDS, EVERY, STEPS = 400, 10, 250
MOMENTS_BATCH = 500  # images at once in our static batch norm
MOST_MINUTES = 5.0
LEAST_RATIO = 15.0
AUTHORS = "the authors' code"
GRIDS = {"local": "LocalGrid", "ray": "Ray"}
REPOSITORY = Path(__file__).parents[2]
LONGEST = 3600.0  # seconds of a run


@dataclass(frozen=True, slots=True)
class Side:
    """What was measured of one way to run rounds: seconds of a round, and of an evaluation."""

    round: float
    evaluation: float
    whole: bool  # whether the round has all that a round has

    @property
    def minutes(self) -> float:
        """Of a whole run."""
        return (ROUNDS * self.round + ROUNDS // EVERY * self.evaluation) / 60


class Board:
    """What was found so far; each line is printed as soon as it is known.

    A side that fails is noted, and the others are measured all the same.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.sides: dict[str, Side] = {}
        self.failed: list[str] = []

    def add(self, name: str, find: Callable[[], Side]) -> None:
        """Measure a side."""
        try:
            side = self.sides[name] = find()
        except Exception as error:
            self.fail(name, error)
            return
        reference = next(iter(self.sides.values()))
        speed, ratio = self.experiment.tera_flop() / side.round, reference.round / side.round
        print(f"{name:<26}{side.round:>10.3f}{side.minutes:>10.1f} min{speed:>9.2f}{ratio:>8.2f}", flush=True)

    def fail(self, name: str, error: Exception) -> None:
        """Note that a side failed."""
        self.failed.append(name)
        print(f"{name:<26} failed: {error}", flush=True)

    def round(self, name: str) -> float:
        """Return the seconds of a side's round; infinitely many if it failed."""
        return self.sides[name].round if name in self.sides else math.inf


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--authors", type=Path, metavar="PATH", help="a checkout of the authors' repository")
    parser.add_argument("--root", default="", metavar="DIR", help="CIFAR10, laid out as on the hub; else random images")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each side, after one to warm up")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each client in a round")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try the code")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="of ours")
    parser.add_argument("--grids", nargs="*", choices=list(GRIDS), default=list(GRIDS), help="what runs whole rounds")


def run(options: argparse.Namespace) -> bool:
    on_gpu = torch.device(options.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print(f"needs a CUDA device, and torch {torch.__version__} finds none: --device cpu --steps 1 tries the code")
        return False
    experiment = Experiment(options.root, options.steps, options.device, options.precision)
    names = [name for name in ENGINES if name != "graph" or on_gpu]  # plain comes first
    print(
        f"{experiment.data().name}, {experiment.steps} steps of {BATCH} images, {options.precision}; {options.device}; "
        f"median of {options.rounds} rounds after one\na round is {experiment.tera_flop():.3g} TFLOP",
        flush=True,
    )
    board = Board(experiment)
    check(board, names)
    measure(board, names, options)
    sides, failed = board.sides, board.failed
    if on_gpu and experiment.steps == STEPS:
        return verdict(sides, failed)
    ran = f"these failed: {', '.join(failed)}" if failed else "everything ran, and the engines agree"
    print(f"\n{f'not {STEPS} steps' if on_gpu else 'no GPU'}: no verdict; {ran}")
    return not failed


def check(board: Board, names: list[str]) -> None:
    """Compare each engine with the first, and drop those that do other work."""
    for name in names[1:]:
        try:
            part = check_equal(name, names[0], board.experiment)
            print(f"engines {names[0]} and {name} differ by {part:.1e} of the parameters' change in a few steps")
        except Exception as error:
            names.remove(name)
            board.fail(f"engine {name}", error)


def measure(board: Board, names: Sequence[str], options: argparse.Namespace) -> None:
    """Measure all sides."""
    experiment, rounds = board.experiment, options.rounds
    evaluation = measure_evaluation(experiment)
    print(f"\n{'':<26}{'s a round':>10}{f'{ROUNDS} rounds':>14}{'TFLOP/s':>9}{'ratio':>8}")
    if options.authors:
        board.add(AUTHORS, lambda: authors_side(options.authors, experiment, rounds))
    for name in names:
        board.add(f"engine {name}", partial(engine_side, name, experiment, rounds, evaluation))
    fastest = min(names, key=lambda name: board.round(f"engine {name}"))
    for grid in options.grids:
        engine = fastest if grid == "local" else "auto"
        board.add(f"{GRIDS[grid]}, engine {engine}", partial(grid_side, grid, engine, experiment, rounds, evaluation))


def authors_side(checkout: Path, experiment: Experiment, rounds: int) -> Side:
    """Run so many rounds of the authors' code, after one that warms up, and evaluate the last."""
    network = {
        "data": "CIFAR10",
        "model": "resnet18",
        "device": experiment.device,
        # Their later code has two blocks in each stage; their results are of the paper's model, as is ours.
        "blocks": MODELS["preresnet18"].keywords["blocks"],  # type: ignore[attr-defined]
        "epochs": experiment.epochs,
    }
    control = f"1_{CLIENTS}_{len(RATES) / CLIENTS:g}_iid_fix_{MIX}_bn_1_1"
    with Authors(checkout, experiment.data, control, torch.get_num_threads(), network=network) as side:
        own = sum(value.numel() for value in experiment.build(1.0).parameters())
        if side.parameters != own:
            raise RuntimeError(
                f"the authors' model has {side.parameters} parameters and ours {own}: they are not the same work"
            )
        parts = [side.play(evaluate=number == rounds) for number in range(rounds + 1)]
    return Side(statistics.median(part.train for part in parts[1:]), parts[-1].evaluation, whole=True)


def engine_side(name: str, experiment: Experiment, rounds: int, evaluation: float) -> Side:
    return Side(Engine(name, experiment).seconds(rounds), evaluation, whole=False)


def grid_side(grid: str, engine: str, experiment: Experiment, rounds: int, evaluation: float) -> Side:
    """Measure the rounds of ``heterofl run`` in a process of its own, but for the first."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        done = subprocess.run(
            [sys.executable, "-m", "heterofl_flwr", *arguments(experiment, grid, engine, rounds + 1, out)],
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,  # where clients find the function that makes the data
            env={**os.environ, **experiment.variables},
            timeout=LONGEST,
        )
        if done.returncode:
            log = (done.stdout + done.stderr).splitlines()[-15:]
            raise RuntimeError("\n".join([f"the run on {grid} failed:", *log]))
        seconds = statistics.median(record.seconds for record in RunFolder(out).history()[1:])
    return Side(seconds, evaluation, whole=True)


def arguments(experiment: Experiment, grid: str, engine: str, rounds: int, out: Path) -> list[str]:
    """Return what ``heterofl`` is asked for: all clients train in each round, and none is evaluated."""
    settings = {
        "data.name": "simulations.bench.gpu_task:images",
        "model.name": "preresnet18",
        "model.norm": "sbn",
        "assignment": "fix",
        "sample.fraction": 1.0,
        "train.lr": experiment.options.learning_rate,
        "train.epochs": experiment.epochs,
        "train.batch-size": BATCH,
        "train.precision": experiment.precision,
        "evaluate.every": 0,
        "engine.name": engine,
        "engine.device": experiment.device,
        "run.callbacks": "",
    }
    how = ["--grid", grid, *(["--parallel", str(len(RATES))] if grid == "ray" else [])]
    what = ["--clients", str(len(RATES)), "--rounds", str(rounds), "--mix", MIX, "--out", str(out)]
    return ["run", *how, *what, *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


def measure_evaluation(experiment: Experiment) -> float:
    """Print the seconds of static batch norm and of the test; return those of an evaluation."""
    device, model = experiment.device, experiment.build(1.0)
    train, test = experiment.data().train.to(device), experiment.data().test.to(device)
    collect_moments(model, [train.inputs[:BATCH]])  # sets up the device's libraries
    moments = {
        size: timed(lambda size=size: collect_moments(model, input_batches(train, size)), device)  # type: ignore[misc]
        for size in (MOMENTS_BATCH, BATCH)
    }
    static = with_static_norm(model, collect_moments(model, [test.inputs[:100]]))
    evaluate_both(static, Split(test.inputs[:100], test.targets[:100]), classes=range(10))
    tested = timed(lambda: evaluate_both(static, test, classes=range(10)), device)
    shown = "; ".join(f"in batches of {size} {seconds:.2f} s" for size, seconds in moments.items())
    print(f"\nstatic batch norm of the global model {shown} (the paper's way: {BATCH}); its test {tested:.2f} s")
    return moments[MOMENTS_BATCH] + tested


def verdict(sides: Mapping[str, Side], failed: Sequence[str]) -> bool:
    """Print whether our fastest way to run whole rounds is fast enough."""
    whole = {name: side for name, side in sides.items() if side.whole and name != AUTHORS}
    missing = [*failed, *([] if AUTHORS in [*sides, *failed] else ["the authors' code (--authors)"])]
    if not whole or missing:
        return print_verdict(False, f": not measured: {', '.join(missing or ['whole rounds (--grids)'])}")
    name, best = min(whole.items(), key=lambda item: item[1].round)
    ratio = sides[AUTHORS].round / best.round
    return print_verdict(
        best.minutes <= MOST_MINUTES and ratio >= LEAST_RATIO,
        f" with {name}: {ROUNDS} rounds in {best.minutes:.1f} min (goal {MOST_MINUTES:g}); {ratio:.1f} times as fast "
        f"as {AUTHORS} (goal {LEAST_RATIO:g})",
    )
