"""Compare rounds that wait with steps that do not, in simulated time.

A hundred clients of five levels train on 10,000 images of MNIST at 14 x 14, ten at any time. The speed of their devices
follows their level, or has nothing to do with it. Accuracies are those of each level's own model on every second image
of MNIST's test set, with batch norm moments of 2,000 training images. Widths, learning rate and epochs are those of
``experiment=search``, which were chosen on held-out images of the training set. Each run is a line in ``cells.jsonl``
of the folder, and is not repeated.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from flwr.app import ArrayRecord
from torch import Tensor

from heterofl_flwr import Buffered, DeviceProfile, Devices, Evaluation, HeteroFL, LocalGrid, SimulatedDevices
from heterofl_flwr.app import client_app
from heterofl_flwr.app.task import Task, load_task
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.grids.devices import EDGE, Training
from heterofl_flwr.nn import collect_moments, with_static_norm
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.runs.files import append_line
from heterofl_flwr.training import evaluate
from simulations.bench.measure import describe_machine
from simulations.program import parser_of, read_lines, status_of, without_logs

PROGRAM = "simulations.asynchronous"
CLIENTS, ROUNDS, SEEDS = 100, 24, (0, 1, 2)
EVERY = 3  # rounds from one evaluation to the next; a round is worth two steps
MEASURED = 2000  # training images for moments
SPLITS = ("dirichlet-0.3", "non-iid-2")

SETTINGS: Mapping[str, float | str] = {
    "data.name": "simulations.small_mnist:with_test_images",
    "model.name": "cnn",
    "model.hidden": "16,32,64,128",
    "mix": "a1-b1-c1-d1-e1",
    "train.lr": 0.05,
    "train.epochs": 2,
    "engine.device": "cpu",
}
"""The settings of every run."""


def _reliable(profile: DeviceProfile) -> DeviceProfile:
    """Return a device that is always there, so that nothing but speed tells devices apart."""
    return replace(profile, available=1.0, drop_out=0.0, least_work=1.0)


PACES: Mapping[str, Mapping[str, DeviceProfile]] = {
    # Devices of large models are faster: a turn at level a takes five times as long as one at d.
    "by level": {level: _reliable(profile) for level, profile in EDGE.items()},
    # A telephone for everyone, whose speed changes from turn to turn by a factor of e or so: a takes 200 times as long.
    "alike": dict.fromkeys(EDGE, replace(_reliable(EDGE["c"]), jitter=1.0)),
}
"""The devices of each level."""

STEPS = Buffered(size=5, concurrency=10)
METHODS: Mapping[str, tuple[float, Buffered]] = {
    "rounds": (0.0, Buffered()),
    "rounds, spare": (0.3, Buffered()),
    "steps, one clock": (0.0, replace(STEPS, clocks="model")),
    "steps": (0.0, STEPS),
    "steps, quota": (0.0, replace(STEPS, quota=1)),
}
"""Rounds of ten clients, with a share of spare ones; or steps of five replies while ten clients train."""


@dataclass(frozen=True)
class Cell:
    split: str
    pace: str
    seed: int
    method: str


def cells() -> Iterator[Cell]:
    """Yield all cells, those that are compared one after another."""
    for seed, split, pace, method in itertools.product(SEEDS, SPLITS, PACES, METHODS):
        yield Cell(split, pace, seed, method)


def run_cell(cell: Cell, rounds: int = ROUNDS) -> list[dict[str, float]]:
    """Return the simulated seconds, and the accuracy of each level, every few rounds.

    Steps take half as many replies again as rounds, as they may need more of them.
    """
    config = {**SETTINGS, "data.split": cell.split, "seed": cell.seed}
    task, (spare, steps) = load_task(config), METHODS[cell.method]
    learning_rate = task.settings.train.learning_rate
    strategy = HeteroFL(
        task.build,
        task.mix,
        seed=cell.seed,
        fraction_train=STEPS.concurrency / CLIENTS,
        fraction_evaluate=0.0,
        min_available_nodes=CLIENTS,
        learning_rate=lambda _: learning_rate,
        spare=spare,
        asynchronous=steps,
        evaluation=Evaluation(every=2 * EVERY if steps.size else EVERY),
    )
    found: list[dict[str, float]] = []
    devices = Devices(PACES[cell.pace], Training(task.build, task.example(), epochs=task.settings.train.epochs))
    with LocalGrid(client_app.app, CLIENTS, run_config=config, cohort=task.cohort) as inner:
        grid = SimulatedDevices(inner, devices)

        def note(server_round: int, arrays: ArrayRecord) -> None:
            if server_round:
                accuracies = level_accuracies(task, strategy, arrays.to_torch_state_dict())
                found.append({"round": server_round, "simulated": grid.seconds, **accuracies})

        strategy.start(grid, num_rounds=3 * rounds if steps.size else rounds, evaluate_fn=note)
    return found


def level_accuracies(task: Task, strategy: HeteroFL, state: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the accuracy of each level's own model on test images."""
    found, test = {}, task.dataset.test
    test = replace(test, inputs=test.inputs[::2], targets=test.targets[::2])
    for rate in task.mix.rates:
        model = task.build(rate)
        model.load_state_dict(strategy.federation.plan(rate).extract(state))
        moments = collect_moments(model, task.dataset.train.inputs[:MEASURED].split(100), kind="fixed")
        own = evaluate(with_static_norm(model, moments), test, seed=0).metrics("global")
        found[level_name(rate)] = own["global-accuracy"]
    return found


def run(options: argparse.Namespace) -> int:
    """Run the cells that are not done."""
    path = options.out / "cells.jsonl"
    done = {Cell(*(line[one.name] for one in fields(Cell))) for line in read_lines(path)}
    wanted = list(cells())
    for number, cell in enumerate(wanted, 1):
        if cell not in done:
            started = time.monotonic()
            found = run_cell(cell)
            about = {"seconds": round(time.monotonic() - started), "about": describe_machine()}
            append_line(path, json.dumps({**asdict(cell), **about, "evaluations": found}))
            print(f"{number}/{len(wanted)}", *asdict(cell).values(), found[-1], flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(PROGRAM, __doc__)
    out = Path("runs", "asynchronous")
    parser.add_argument("--out", type=Path, default=out, metavar="FOLDER", help="default: %(default)s")
    with without_logs(), torch_threads(1):
        return status_of(PROGRAM, lambda: run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
