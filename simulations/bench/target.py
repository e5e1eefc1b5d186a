"""Rounds and seconds up to an accuracy, with a break at any time."""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from heterofl_flwr.app.launch.gpus import cores
from heterofl_flwr.app.launch.request import App
from heterofl_flwr.app.launch.running import open_grid
from heterofl_flwr.app.server_app import run as run_server
from heterofl_flwr.app.task import load_task
from heterofl_flwr.core.formatting import duration
from heterofl_flwr.federation.records import Progress, RoundCallback
from heterofl_flwr.runs import RunFolder
from simulations.bench.measure import Goal
from simulations.bench.ours import APP, build_our_request
from simulations.reference.authors import Authors
from simulations.reference.rounds import Experiment


@dataclass(frozen=True, slots=True)
class Course:
    """The seconds of a side's rounds so far, and the accuracies that it measured, by round."""

    seconds: Sequence[float]
    accuracies: Mapping[int, float]

    def reached(self, goal: float) -> int | None:
        """Return the first round whose accuracy reaches the goal."""
        return next((number for number, accuracy in sorted(self.accuracies.items()) if accuracy >= goal), None)

    def time_to(self, goal: float) -> float:
        """Return the seconds up to that round; infinitely many where there is none yet."""
        number = self.reached(goal)
        return float("inf") if number is None else sum(self.seconds[:number])

    @property
    def best(self) -> float:
        return max(self.accuracies.values(), default=0.0)

    def describe(self, goal: float) -> str:
        number = self.reached(goal)
        if number is None:
            return f"not in {len(self.seconds)} rounds; best {self.best:.4f}"
        return f"round {number}, {duration(self.time_to(goal))}, accuracy {self.accuracies[number]:.4f}"


class Stop(RoundCallback):
    """Ends a run that has reached its goal."""

    def __init__(self, goal: float) -> None:
        self._goal = goal

    def on_round_end(self, progress: Progress) -> bool:
        return progress.record.evaluate.get("global-accuracy", 0.0) >= self._goal


def run(experiment: Experiment, options: argparse.Namespace) -> list[Goal]:
    """Run both sides until they reach the accuracy or give up; ours must reach it, and not later than theirs."""
    print(
        f"MNIST, {experiment.clients} clients, {experiment.mix}, dynamic, up to a global accuracy of "
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
    return compare(ours, theirs, options.target)


def compare(ours: Course, theirs: Course | None, target: float) -> list[Goal]:
    goals = [Goal("our best accuracy", ours.best, least=target)]
    if theirs and theirs.reached(target) is not None:
        goals.append(Goal("in times the authors' speed", theirs.time_to(target) / ours.time_to(target), least=1))
    return goals


def run_ours(experiment: Experiment, options: argparse.Namespace, folder: Path) -> Course:
    """Go on with our run where there is anything left to do, and return its course."""
    course = read_course(folder)
    if course.reached(options.target) is None and len(course.seconds) < options.most:
        settings = {"assignment": "dynamic", "evaluate.every": options.every}
        how = ("--grid", "local", "--rounds", str(options.most))
        request = build_our_request(experiment, folder, *how, settings=settings)
        with open_grid(request, App("", APP, request.config)) as grid:
            run_server(grid, load_task(request.config), [Stop(options.target)])
    return read_course(folder)


def read_course(folder: Path) -> Course:
    records, name = RunFolder(folder).history(), "global-accuracy"
    accuracies = {record.server_round: record.evaluate[name] for record in records if name in record.evaluate}
    return Course([record.seconds for record in records], accuracies)


def run_theirs(experiment: Experiment, options: argparse.Namespace, folder: Path) -> Course:
    """Go on with the authors' run, and return its course."""
    folder.mkdir(parents=True, exist_ok=True)
    control, state = experiment.control("dynamic"), folder / "authors.pt"
    with Authors(options.authors, experiment.data, control, cores(), balanced=False, state=state) as side:
        while True:
            tested = {number: parts.accuracy for number, parts in enumerate(side.history, 1) if parts.test}
            course = Course([parts.whole for parts in side.history], tested)
            if course.reached(options.target) is not None or len(course.seconds) >= options.most:
                return course
            parts = side.play(evaluate=(len(course.seconds) + 1) % options.every == 0)
            if parts.test:
                print(f"the authors' round {len(side.history)}: accuracy {parts.accuracy:.4f}", flush=True)
