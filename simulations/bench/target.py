"""Rounds and seconds up to an accuracy, with a break at any time."""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from heterofl_flwr.app.launch.gpus import cores
from heterofl_flwr.app.server_app import run as run_server
from heterofl_flwr.app.task import task_of
from heterofl_flwr.core.formatting import duration
from heterofl_flwr.federation.records import Progress, RoundCallback
from heterofl_flwr.report import RunFolder
from simulations.bench.measure import print_verdict
from simulations.bench.sides import local_grid, request
from simulations.reference.authors import Authors
from simulations.reference.rounds import Experiment, Parts


@dataclass(frozen=True, slots=True)
class Way:
    """How far a side is: the seconds of its rounds, and the accuracies that it measured, by round."""

    seconds: Sequence[float]
    accuracies: dict[int, float]

    def reached(self, goal: float) -> int | None:
        """Return the first round whose accuracy reaches the goal."""
        return next((number for number, accuracy in sorted(self.accuracies.items()) if accuracy >= goal), None)

    def describe(self, goal: float) -> str:
        """Return a line that says when it reached the goal."""
        number = self.reached(goal)
        if number is None:
            best = max(self.accuracies.values(), default=0.0)
            return f"not in {len(self.seconds)} rounds; best {best:.4f}"
        return f"round {number}, {duration(sum(self.seconds[:number]))}, accuracy {self.accuracies[number]:.4f}"


class Stop(RoundCallback):
    """Ends a run that has reached its goal."""

    def __init__(self, goal: float) -> None:
        self._goal = goal

    def on_round_end(self, progress: Progress) -> bool:
        return progress.record.evaluate.get("global-accuracy", 0.0) >= self._goal


def run(experiment: Experiment, options: argparse.Namespace) -> bool:
    """Run both sides until they reach the accuracy or give up; ours must reach it, and not later than theirs."""
    print(
        f"MNIST, {experiment.clients} clients, {experiment.mix}, {options.assignment}, up to a global accuracy of "
        f"{options.target:g}, evaluated every {options.every} rounds; seed 0 on both sides; {cores()} cores",
        flush=True,
    )
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = run_ours(experiment, options, work / "ours")
        print(f"\nours: {ours.describe(options.target)}", flush=True)
        theirs = run_theirs(experiment, options, work) if options.authors else None
        if theirs:
            print(f"the authors' code: {theirs.describe(options.target)}")
    return verdict(ours, theirs, options.target)


def verdict(ours: Way, theirs: Way | None, goal: float) -> bool:
    mine, other = ours.reached(goal), theirs.reached(goal) if theirs else None
    passed = mine is not None
    text = f"ours has {'' if passed else 'not '}reached {goal:g}"
    if theirs and mine is not None and other is not None:
        ratio = sum(theirs.seconds[:other]) / sum(ours.seconds[:mine])
        passed = ratio >= 1
        text += f" {ratio:.2f} times as fast as the authors' code (goal 1)"
    return print_verdict(passed, f": {text}")


def run_ours(experiment: Experiment, options: argparse.Namespace, folder: Path) -> Way:
    """Go on with our run where there is anything left to do, and return its history."""
    way = way_of(folder)
    if way.reached(options.target) is None and len(way.seconds) < options.most:
        settings = {"assignment": options.assignment, "evaluate.every": options.every}
        chosen = ("--grid", "local", "--rounds", str(options.most))
        asked = request(experiment, folder, *chosen, settings=settings)
        with local_grid(asked) as grid:  # as `heterofl run --grid local` does, up to the target
            run_server(grid, task_of(asked.config), [Stop(options.target)])
    return way_of(folder)


def way_of(folder: Path) -> Way:
    """Return how far our run is."""
    records = RunFolder(folder).history()
    name = "global-accuracy"
    accuracies = {record.server_round: record.evaluate[name] for record in records if name in record.evaluate}
    return Way([record.seconds for record in records], accuracies)


def run_theirs(experiment: Experiment, options: argparse.Namespace, folder: Path) -> Way:
    """Go on with the authors' run, and return its history."""
    folder.mkdir(parents=True, exist_ok=True)
    with Authors(
        options.authors,
        experiment.data,
        experiment.control(options.assignment),
        cores(),
        balanced=False,
        state=folder / "authors.pt",
    ) as side:
        while (way := _way(side.history)).reached(options.target) is None and len(way.seconds) < options.most:
            parts = side.play(evaluate=(len(way.seconds) + 1) % options.every == 0)
            if parts.test:
                print(f"the authors' round {len(side.history)}: accuracy {parts.accuracy:.4f}", flush=True)
        return way


def _way(history: Sequence[Parts]) -> Way:
    accuracies = {number: parts.accuracy for number, parts in enumerate(history, 1) if parts.test}
    return Way([parts.whole for parts in history], accuracies)
