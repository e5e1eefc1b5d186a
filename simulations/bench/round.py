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
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from heterofl_flwr import HeteroFL, HeteroFLError, LocalGrid, Windowed
from heterofl_flwr.app import client_app
from heterofl_flwr.app.callbacks import evaluate_global
from heterofl_flwr.app.client_resources import cohort_limit, open_grid
from heterofl_flwr.app.main import parse
from heterofl_flwr.app.request import CLIENT_APP, Request, build_request
from heterofl_flwr.app.server_app import make_strategy
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.common.errors import DataError
from heterofl_flwr.core import LEVELS
from heterofl_flwr.federation.capability import Capability
from heterofl_flwr.nn import PAPER
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.training import TrainResult, train_together
from simulations.bench.measure import Goal, medians, print_row
from simulations.program import Records, cores
from simulations.reference.authors import MIX, Authors, Experiment, Parts
from simulations.results.paper import CLIENTS_A_ROUND

APP = "simulations.bench.round:app"
READY = "query.ready"

app = client_app.app


@app.query("ready")
def read_data(message: Message, context: Context) -> Message:
    """Read a client's data into memory, before measurements begin."""
    data = load_workload(context.run_config).part(0, int(context.node_config["num-partitions"]))
    sizes = {"train": len(data.train), "test": len(data.test)}
    return Message(RecordDict({READY: ConfigRecord({"process": os.getpid(), **sizes})}), reply_to=message)


def drawn_rates(experiment: Experiment, seed: int, server_round: int = 1) -> list[float]:
    """Return the rates of the clients that this package draws to train in a round under *Fix*."""
    strategy = HeteroFL(PAPER["mnist"].build(), experiment.mix, seed=seed, fraction_train=experiment.fraction)
    clients, levels = range(experiment.clients), strategy.federation.levels
    strategy.federation.register({own: Capability(partition=own, num_partitions=len(clients)) for own in clients})
    return [levels.rate(server_round, partition) for partition in levels.sample(server_round, clients, "train")]


def is_balanced(rates: Iterable[float]) -> bool:
    """Whether ``rates`` has equally many clients of each level."""
    counts = Counter(rates)
    return counts.keys() == {*LEVELS.values()} and len(set(counts.values())) == 1


def build_our_request(experiment: Experiment, folder: Path, *words: str) -> Request:
    """Return the request of ``heterofl run`` for an experiment, with a run folder and more words of the command."""
    settings = {"data.root": experiment.root, "data.split": experiment.split, "mix": experiment.mix}
    settings |= {"sample.fraction": str(experiment.fraction), "engine.device": "cpu", "assignment": "fix"}
    line = ["run", "--data", "mnist", "--clients", str(experiment.clients), "--out", str(folder)]
    return build_request(parse([*line, *(f"{key}={value}" for key, value in settings.items()), *words]))


class TimedGrid(Windowed):
    """Grid proxy that adds up the time of exchanges, including aggregation, by message type."""

    seconds: defaultdict[str, float]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield the replies."""
        start = time.perf_counter()
        sent = list(messages)
        yield from super().send_and_receive(sent, timeout=timeout)
        self.seconds[sent[0].metadata.message_type] += time.perf_counter() - start


class Ours:
    """Rounds of this package, with the same evaluation as the authors' code: static batch norm, global and local.

    The server does not evaluate: the clients' test parts together are the whole test set, and each client evaluates its
    part with and without its mask in one pass.
    """

    name = "heterofl-flwr"

    def __init__(self, request: Request, grid: Grid) -> None:
        self.config, self.workload = request.config, load_workload(request.config)
        same = {"evaluate.every": 1, "evaluate.levels": False, "evaluate.central": False}
        self._strategy = make_strategy(load_workload({**request.config, **same}), ())
        self._grid = TimedGrid(grid, self.workload.settings.engine.window)

    def play(self) -> Parts:
        """Run the first round, from the initial model."""
        seconds = self._grid.seconds = defaultdict(float)
        self._arrays = self._strategy.start(self._grid, num_rounds=1).arrays
        record = self._strategy.log
        if record.failures or not is_balanced(record.rates.values()):
            raise HeteroFLError(f"expected two good clients of each level: {record.rates}, failed: {record.failures}")
        moments, test, found = seconds["query.moments"], seconds["evaluate"], record.evaluate
        # Slicing, sending and averaging count as training.
        rest = record.seconds - moments - test
        return Parts(rest, moments, test, found["global-accuracy"], found["local-accuracy"])

    def time_default_evaluation(self, *, levels: bool) -> float:
        """Return the seconds of the default evaluation of the latest model; with ``levels``, of all levels' models."""
        strategy = make_strategy(load_workload({**self.config, "evaluate.levels": levels}), ())
        arrays, due = self._arrays, self.workload.settings.evaluate.every
        start = time.perf_counter()
        messages = strategy.configure_evaluate(due, arrays, ConfigRecord(), self._grid)
        strategy.aggregate_evaluate(due, self._grid.send_and_receive(messages))
        evaluate_global(strategy, self.workload, None, due, arrays)
        return time.perf_counter() - start


@contextmanager
def open_ours(experiment: Experiment) -> Iterator[Ours]:
    """Start the actors, and let each of them read its data."""
    start = time.perf_counter()
    seed = next(seed for seed in itertools.count() if is_balanced(drawn_rates(experiment, seed)))
    with tempfile.TemporaryDirectory() as folder:
        request = build_our_request(experiment, Path(folder), "--grid", "ray", "--seed", str(seed))
        with open_grid(replace(request, client=APP)) as grid:
            ready: set[object] = set()
            while len(ready) < cores():  # the first actors answer before the others have started
                replies = grid.send_and_receive([Message(RecordDict(), node, READY) for node in grid.get_node_ids()])
                if failed := [reply.error.reason for reply in replies if reply.has_error()]:
                    raise DataError(f"clients cannot read their data: {failed[0]}")
                ready |= {reply.content.config_records[READY]["process"] for reply in replies}
            print(f"our seed {seed}; our actors start and read their data in {time.perf_counter() - start:.1f} s")
            yield Ours(request, grid)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--authors", type=Path, metavar="PATH", help="a checkout of the authors' repository")
    parser.add_argument("--root", default="", metavar="DIR", help="MNIST, laid out as on the hub; else HETEROFL_DATA")
    parser.add_argument("--clients", type=int, default=100, help="clients, of which ten train")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of both sides, taking turns")
    parser.add_argument("--overhead", type=int, default=5, metavar="N", help="rounds of level e; 0 leaves them out")


def run(options: argparse.Namespace) -> list[Goal]:
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it logs each round
    experiment = Experiment(options.root, options.clients)
    with ExitStack() as stack:
        ours = stack.enter_context(open_ours(experiment))
        theirs = options.authors and stack.enter_context(Authors(options.authors, experiment))
        goals = compare(ours, theirs, experiment, options.rounds)
    if options.overhead:
        goals += measure_overhead(experiment, options.overhead)
    return goals


def compare(ours: Ours, authors: Authors | None, experiment: Experiment, rounds: int) -> list[Goal]:
    """Measure both sides alternately, and print the times of a round's parts."""
    about = f"MNIST, {experiment.clients} clients, {CLIENTS_A_ROUND} train: {MIX}, fix; {cores()} cores; in turns"
    print(f"{about}; median of {rounds} rounds\n", flush=True)
    sides: list[Ours | Authors] = [ours, *([authors] if authors else [])]
    found: dict[str, list[Parts]] = {side.name: [] for side in sides}
    evaluations = []
    for _ in range(rounds):
        for side in sides:
            found[side.name].append(side.play())
        evaluations.append([ours.time_default_evaluation(levels=levels) for levels in (False, True)])
    parts = {name: Parts(*medians(own)) for name, own in found.items()}
    print_row("seconds", parts, width=20)
    for name in ("train", "moments", "test", "whole", "accuracy", "local_accuracy"):
        print_row(name.replace("_", " "), (getattr(own, name) for own in parts.values()), width=20)
    usual, last = medians(evaluations)
    return compare_runs(ours.workload.settings, usual, last, *parts.values())


def compare_runs(settings: Settings, usual: float, last: float, ours: Parts, theirs: Parts | None = None) -> list[Goal]:
    """Print the times of whole runs, computed from the parts of a round.

    ``usual`` and ``last`` are the seconds of our default evaluation, without and with each level's model.
    """
    number, every = settings.num_rounds, settings.evaluate.every
    whole = number * ours.train + (number // every - 1) * usual + last
    print(f"\nminutes of {number} rounds, computed from these parts; ours have the default evaluation every {every}")
    print(f"rounds, which took {usual:.2f} s, and after the last round, with each level's model, {last:.2f} s\n")
    print_row("ours", [whole / 60])
    if not theirs:
        return []
    always, rarely = number * theirs.whole, number * theirs.train + number // every * theirs.evaluation
    print_row("theirs, every round", [always / 60])
    print_row("theirs, as rarely", [rarely / 60])
    ratios = (
        ("training", theirs.train / ours.train, 1.8),
        ("a round", theirs.whole / ours.whole, 2.0),
        (f"{number} rounds", always / whole, 4.8),
        ("with evaluations as rare", rarely / whole, 2.0),
    )
    return [Goal(f"{name}, in times the authors' speed", ratio, least=least) for name, ratio, least in ratios]


def measure_overhead(experiment: Experiment, rounds: int) -> list[Goal]:
    """Print the overhead of a round of ten clients of level e, 1 - (training / round).

    The time of a round is that from sampling clients to the new global model, on a ``LocalGrid``. The time of training
    is that of ``train_together``. The mix has one client of level a, which never trains, because of the seed.
    """
    experiment, seed = replace(experiment, mix=f"a1-e{experiment.clients - 1}"), 0
    while any(LEVELS["a"] in drawn_rates(experiment, seed, number) for number in range(1, rounds + 2)):
        seed += 1
    options = ("--grid", "local", "--seed", str(seed), "--rounds", str(rounds + 1), "evaluate.every=0")
    print(f"\na round of ten clients of level e, in one process; median of {rounds}:")
    with tempfile.TemporaryDirectory() as folder:
        request = build_our_request(experiment, Path(folder, "run"), *options)
        whole, training = time_rounds(request, rounds)
    share = 1 - training / whole
    print(f"LocalGrid {whole:.2f} s, training alone {training:.2f} s: overhead {share:.1%}")
    return [Goal("overhead as a share of a round", share, most=0.1)]


def time_rounds(request: Request, rounds: int) -> tuple[float, float]:
    """Return the median seconds of a round, after one to warm up, and the seconds of training in this process."""
    records, training = Records(), defaultdict[int, float](float)  # seconds by number of rounds before
    strategy = make_strategy(load_workload(request.config), (records,))

    def timed(*arguments: Any, **options: Any) -> list[TrainResult]:
        start = time.perf_counter()
        results = train_together(*arguments, **options)
        training[len(records)] += time.perf_counter() - start
        return results

    grid = LocalGrid(CLIENT_APP, request.clients, cohort=cohort_limit(request), run_config=request.config)
    with grid, torch_threads(1), mock.patch.object(client_app, "train_together", timed):
        strategy.start(grid, num_rounds=rounds + 1)
    whole, alone = medians((record.seconds, training[number]) for number, record in enumerate(records) if number)
    return whole, alone
