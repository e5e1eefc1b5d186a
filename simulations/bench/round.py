"""Rounds of MNIST: ours beside the authors' code or a plain loop.

A round: of 100 clients ten train, two of each level a to e, for five epochs with batches of ten; then static batch norm
in the paper's way, over all training images in batches of ten, and two tests of the global model: on all test images,
and on each client's with its mask. ``--authors`` names a checkout of the HeteroFL authors' repository, whose functions
then run beside ours; without it, a loop of our own in their style does. Each side uses all cores in its own way: they
with as many threads, we with as many processes of one thread. Both have their data in memory before the time starts.

``--target`` runs both until the global accuracy reaches it, ours at its defaults. ``--work`` is a folder that keeps how
far they are: the same command goes on after a break. Whole runs beside the authors' are ``simulations.reference``'s.
"""

import argparse
import logging
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from heterofl_flwr.app.launch.gpus import cores
from simulations.bench import overhead, target
from simulations.bench.measure import print_verdict
from simulations.bench.sides import Ours, Plain
from simulations.reference.authors import Authors
from simulations.reference.rounds import MIX, TRAINED, Experiment, Parts, check, median

LEAST_TRAINING = 1.8
LEAST_ROUND = 2.0
LEAST_RUN = 4.8
LEAST_RARELY = 2.0
MOST_OVERHEAD = 0.1
MOST_ON_RAY = 1.3

Side = Authors | Plain


@dataclass(frozen=True, slots=True)
class Goal:
    """What was measured, and whether it is good enough; ``shown`` says both."""

    met: bool
    shown: str

    @classmethod
    def faster(cls, name: str, ratio: float, least: float) -> "Goal":
        return cls(ratio >= least, f"{name} {ratio:.2f} times as fast (goal {least:g})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--authors", type=Path, metavar="PATH", help="a checkout of the authors' repository")
    parser.add_argument("--root", default="", metavar="DIR", help="MNIST, laid out as on the hub; else HETEROFL_DATA")
    parser.add_argument("--clients", type=int, default=100, help="clients, of which ten train")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of both sides, taking turns")
    parser.add_argument("--overhead", type=int, default=5, metavar="N", help="rounds of level e; 0 leaves them out")
    parser.add_argument("--ray", action="store_true", help="measure the overhead on RayGrid as well")
    until = parser.add_argument_group("until an accuracy")
    until.add_argument("--target", type=float, metavar="ACCURACY", help="such as 0.99; measures this and nothing else")
    until.add_argument("--every", type=int, default=5, metavar="N", help="both evaluate after every N rounds")
    until.add_argument("--assignment", choices=["dynamic", "fix"], default="dynamic", help="of levels, for both")
    until.add_argument("--mix", default=MIX, help="levels, as the authors write them: e1, d1-e1; default: %(default)s")
    until.add_argument("--most", type=int, default=200, metavar="N", help="give up after so many rounds")
    until.add_argument("--work", type=Path, metavar="DIR", help="where both sides keep how far they are")


def run(options: argparse.Namespace) -> bool:
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it tells about each round
    if options.target is not None:
        return target.run(Experiment(options.root, options.clients, options.mix), options)
    experiment = Experiment(options.root, options.clients)
    with ExitStack() as stack:
        ours = stack.enter_context(Ours(experiment))
        side: Side
        if options.authors:
            side = stack.enter_context(Authors(options.authors, experiment.data, experiment.control(), cores()))
        else:
            side = Plain(experiment, cores())
        goals = compare(ours, side, experiment, options.rounds)
    if options.overhead:
        goals += measure_overhead(experiment, options.overhead, ray=options.ray)
    return print_verdict(all(goal.met for goal in goals), f": {'; '.join(goal.shown for goal in goals)}")


def compare(ours: Ours, side: Side, experiment: Experiment, rounds: int) -> list[Goal]:
    """Measure both sides in turns, and print the parts of a round and what they make of a whole run."""
    print(
        f"MNIST, {experiment.clients} clients, {TRAINED} train: {MIX}, fix; our seed {ours.seed}; {cores()} cores; "
        f"median of {rounds} rounds of each side in turns\n"
        f"before the first, our processes start and read their data in {ours.start_seconds:.1f} s",
        flush=True,
    )
    mine: list[Parts] = []
    theirs: list[Parts] = []
    evaluations, last = [], []
    for number in range(rounds):
        for one, found in ((ours, mine), (side, theirs)):
            parts, model = one.round()
            if number == 0:
                check(one.name, model, parts.accuracy, experiment.data())
            found.append(parts)
        evaluations.append(ours.default_evaluation(levels=False))
        last.append(ours.default_evaluation(levels=True))
    first, second = median(mine), median(theirs)
    print_parts(first, second, side.name)
    return [
        Goal.faster("training", second.train / first.train, LEAST_TRAINING),
        Goal.faster("a round", second.whole / first.whole, LEAST_ROUND),
        *compare_runs(
            first.train, (statistics.median(evaluations), statistics.median(last)), second, ours.rounds, side.name
        ),
    ]


def print_parts(ours: Parts, theirs: Parts, name: str) -> None:
    print(f"\n{'seconds':<14}{'ours':>9}{name:>18}{'ratio':>8}")
    for part, attribute in (("training", "train"), ("static norm", "moments"), ("test", "test"), ("whole", "whole")):
        mine, other = getattr(ours, attribute), getattr(theirs, attribute)
        print(f"{part:<14}{mine:>9.2f}{other:>18.2f}{other / mine:>8.2f}")
    for part, attribute in (("accuracy", "accuracy"), ("local accuracy", "local_accuracy")):
        print(f"{part:<14}{getattr(ours, attribute):>9.4f}{getattr(theirs, attribute):>18.4f}")


def compare_runs(
    training: float, evaluations: tuple[float, float], theirs: Parts, rounds: tuple[int, int], name: str
) -> list[Goal]:
    """Print what whole runs take, computed from the measured parts."""
    number, every = rounds
    evaluation, last = evaluations
    mine = number * training + (number // every - 1) * evaluation + last
    always = number * theirs.whole
    rarely = number * theirs.train + number // every * theirs.evaluation
    print(
        f"\n{number} rounds, computed from these parts and our default evaluation, which took {evaluation:.2f} s, and "
        f"{last:.2f} s with each level's model, as after the last round:\n"
        f"{f'ours, evaluating every {every} rounds':<45}{mine / 60:>7.1f} min\n"
        f"{f'{name}, evaluating every round':<45}{always / 60:>7.1f} min{always / mine:>7.2f} times as long\n"
        f"{f'{name}, evaluating every {every} rounds':<45}{rarely / 60:>7.1f} min{rarely / mine:>7.2f} times as long"
    )
    return [
        Goal.faster(f"{number} rounds", always / mine, LEAST_RUN),
        Goal.faster("with evaluations as rare", rarely / mine, LEAST_RARELY),
    ]


def measure_overhead(experiment: Experiment, rounds: int, *, ray: bool) -> list[Goal]:
    """Print what part of a round of small models is not training."""
    found = overhead.measure(experiment, rounds, ray=ray)
    print(f"\na round of ten clients of level e, one at a time; median of {rounds}:")
    for name, own in found.items():
        print(f"{name:<14}{own.round:>7.2f} s, training alone {own.training:.2f} s: overhead {own.share:.1%}")
    share = found["LocalGrid"].share
    goals = [Goal(share <= MOST_OVERHEAD, f"overhead {share:.1%} (goal {MOST_OVERHEAD:.0%})")]
    if ray:
        times = found["RayGrid"].round / found["LocalGrid"].round
        goals.append(Goal(times <= MOST_ON_RAY, f"on RayGrid {times:.2f} times as long (goal {MOST_ON_RAY:g})"))
    return goals
