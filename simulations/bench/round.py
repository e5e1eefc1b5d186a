"""Time of rounds of MNIST in this package and in the authors' code.

In a round ten of 100 clients train, two of each level a to e, for five epochs with batches of ten. Then static batch
norm is measured as in the paper, over all training images in batches of ten. Then the global model is tested on all
test images, and on each client's test images with its mask.

``--authors`` names a checkout of the HeteroFL authors' repository, whose functions then run alternately with this
package. Both sides use all cores: the authors' code with threads, this package with actors of one thread each. Data are
in memory before the time starts. The overhead of a round is measured with ten clients of level e, which train fastest.

``simulations.reference`` compares accuracies of whole runs.
"""

import argparse
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from flwr.app import ArrayRecord, ConfigRecord

from heterofl_flwr.app import client_app
from heterofl_flwr.app.client_resources import cohort_limit
from heterofl_flwr.app.request import CLIENT_APP, Request
from heterofl_flwr.app.server_app import make_strategy
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.core import LEVELS
from heterofl_flwr.grids import LocalGrid, RayGrid
from heterofl_flwr.grids.queued import QueuedGrid
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.training import TrainResult, train_together
from simulations.bench.measure import Goal
from simulations.bench.ours import Ours, build_our_request, open_ours
from simulations.program import cores
from simulations.reference.authors import Authors
from simulations.reference.rounds import MIX, Experiment, Parts, median, members
from simulations.results.paper import CLIENTS_A_ROUND


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--authors", type=Path, metavar="PATH", help="a checkout of the authors' repository")
    parser.add_argument("--root", default="", metavar="DIR", help="MNIST, laid out as on the hub; else HETEROFL_DATA")
    parser.add_argument("--clients", type=int, default=100, help="clients, of which ten train")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of both sides, taking turns")
    parser.add_argument("--overhead", type=int, default=5, metavar="N", help="rounds of level e; 0 leaves them out")
    parser.add_argument("--ray", action="store_true", help="measure the overhead on RayGrid as well")


def run(options: argparse.Namespace) -> list[Goal]:
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it logs each round
    experiment = Experiment(options.root, options.clients)
    with ExitStack() as stack:
        ours = stack.enter_context(open_ours(experiment))
        theirs = options.authors and stack.enter_context(
            Authors(options.authors, experiment.data, experiment.control(), cores())
        )
        goals = compare(ours, theirs, experiment, options.rounds)
    if options.overhead:
        goals += measure_overhead(experiment, options.overhead, ray=options.ray)
    return goals


def compare(ours: Ours, authors: Authors | None, experiment: Experiment, rounds: int) -> list[Goal]:
    """Measure both sides alternately; print the times of a round's parts, and of whole runs computed from them."""
    about = f"MNIST, {experiment.clients} clients, {CLIENTS_A_ROUND} train: {MIX}, fix; {cores()} cores; in turns"
    print(f"{about}; median of {rounds} rounds", flush=True)
    sides: list[Ours | Authors] = [ours, *([authors] if authors else [])]
    found: dict[str, list[Parts]] = {side.name: [] for side in sides}
    evaluations, last = [], []
    for _ in range(rounds):
        for side in sides:
            found[side.name].append(side.play())
        evaluations.append(ours.time_default_evaluation(levels=False))
        last.append(ours.time_default_evaluation(levels=True))
    medians = {name: median(parts) for name, parts in found.items()}
    print(f"\n{'seconds':<14}" + "".join(f"{name:>18}" for name in medians))
    for part in ("train", "moments", "test", "whole", "accuracy", "local_accuracy"):
        print(f"{part.replace('_', ' '):<14}" + "".join(f"{getattr(own, part):>18.4g}" for own in medians.values()))
    number, every = ours.workload.settings.num_rounds, ours.workload.settings.evaluate.every
    usual, final = statistics.median(evaluations), statistics.median(last)
    mine, *others = medians.values()
    whole = number * mine.train + (number // every - 1) * usual + final
    print(
        f"\n{number} rounds, computed from these parts and our default evaluation, which took {usual:.2f} s, and "
        f"{final:.2f} s with each level's model, as after the last round:\n"
        f"{f'ours, evaluating every {every} rounds':<45}{whole / 60:>7.1f} min"
    )
    if not others:
        return []
    (theirs,) = others
    always, rarely = number * theirs.whole, number * theirs.train + number // every * theirs.evaluation
    for when, seconds in (("round", always), (f"{every} rounds", rarely)):
        what = f"the authors' code, evaluating every {when}"
        print(f"{what:<45}{seconds / 60:>7.1f} min{seconds / whole:>7.2f} times as long")
    ratios = (
        ("training", theirs.train / mine.train, 1.8),
        ("a round", theirs.whole / mine.whole, 2.0),
        (f"{number} rounds", always / whole, 4.8),
        ("with evaluations as rare", rarely / whole, 2.0),
    )
    return [Goal(f"{name}, in times the authors' speed", ratio, least=least) for name, ratio, least in ratios]


def measure_overhead(experiment: Experiment, rounds: int, *, ray: bool) -> list[Goal]:
    """Print the overhead of a round of ten clients of level e, 1 - (training / round).

    The time of a round is that from sampling clients to the new global model, on a ``LocalGrid`` or on a ``RayGrid``
    with one actor. The time of training is that of ``train_together`` on the ``LocalGrid``. The mix has one client of
    level a, which never trains.
    """
    mix = f"a1-e{experiment.clients - 1}"
    drawn = partial(members, experiment.clients, mix=mix)
    seed = next(  # the first seed with which only clients of level e train
        seed
        for seed in itertools.count()
        if all(set(drawn(seed, server_round=own + 1).values()) == {LEVELS["e"]} for own in range(rounds + 1))
    )
    options = ("--seed", str(seed), "--rounds", str(rounds + 1))
    settings: dict[str, object] = {"mix": mix, "assignment": "fix", "evaluate.every": 0}
    grids: dict[str, Callable[..., QueuedGrid]] = {"LocalGrid": LocalGrid}
    if ray:
        grids["RayGrid"] = partial(RayGrid, at_once=1)
    print(f"\na round of ten clients of level e, in one process; median of {rounds}:")
    with tempfile.TemporaryDirectory() as folder:
        request = build_our_request(experiment, Path(folder, "run"), "--grid", "local", *options, settings=settings)
        found = {name: time_rounds(request, make, rounds) for name, make in grids.items()}
    whole, training = found["LocalGrid"]
    share = 1 - training / whole
    for name, (seconds, _) in found.items():
        print(f"{name:<14}{seconds:>7.2f} s")
    print(f"training alone{training:>7.2f} s: overhead {share:.1%}")
    goals = [Goal("overhead as a share of a round", share, most=0.1)]
    if ray:
        goals.append(Goal("a round on RayGrid, in times that on LocalGrid", found["RayGrid"][0] / whole, most=1.3))
    return goals


def time_rounds(request: Request, make: Callable[..., QueuedGrid], rounds: int) -> tuple[float, float]:
    """Return the median seconds of a round, after one to warm up, and the seconds of training in this process."""
    strategy = make_strategy(load_workload(request.config), ())
    arrays = ArrayRecord(strategy.federation.architecture.initial_state())
    times, training = [], 0.0

    def timed(*arguments: Any, **options: Any) -> list[TrainResult]:
        nonlocal training
        start = time.perf_counter()
        results = train_together(*arguments, **options)
        training += time.perf_counter() - start
        return results

    grid = make(CLIENT_APP, request.clients, cohort=cohort_limit(request), run_config=request.config)
    with grid, torch_threads(1), mock.patch.object(client_app, "train_together", timed):
        for server_round in range(1, rounds + 2):
            start, training = time.perf_counter(), 0.0
            messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
            strategy.aggregate_train(server_round, grid.send_and_receive(messages))
            times.append((time.perf_counter() - start, training))
    whole, alone = (statistics.median(own) for own in zip(*times[1:], strict=True))
    return whole, alone
