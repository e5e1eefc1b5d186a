"""Whole rounds: ``heterofl run`` in a process of its own, with all that a round is, on Ray or on a ``LocalGrid``."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from heterofl_flwr.report import RunFolder
from simulations.bench.cifar10.task import BATCH, MIX, RATES, Experiment

REPOSITORY = Path(__file__).parents[3]
LONGEST = 3600.0


def seconds_of_round(experiment: Experiment, grid: str, engine: str, rounds: int) -> float:
    """Return the median seconds of a run's rounds, but for the first."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = [sys.executable, "-m", "heterofl_flwr", *arguments(experiment, grid, engine, rounds + 1, out)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,  # where clients find the function that makes the data
            env={**os.environ, **experiment.variables},
            timeout=LONGEST,
        )
        if done.returncode:
            raise RuntimeError(
                "\n".join([f"the run on {grid} failed:", *(done.stdout + done.stderr).splitlines()[-15:]])
            )
        return statistics.median(record.seconds for record in RunFolder(out).history()[1:])


def arguments(experiment: Experiment, grid: str, engine: str, rounds: int, out: Path) -> list[str]:
    """Return what ``heterofl`` is asked for: all clients train in each round, and none is evaluated."""
    settings = {
        "data.name": "simulations.bench.cifar10.task:images",
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
