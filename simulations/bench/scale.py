"""Time and memory of the server in rounds of 100 to 1,000 clients.

Clients are sampled from 10,000 and return their slices without training. Their levels (a to e of CIFAR10's model) are
drawn anew in each round. So the server is measured, in one thread: it makes slices, sends them in a window of 16
messages, and averages the replies. A measurement is a run of three rounds.

The first round is printed separately, because it also queries all clients' capabilities.

Memory is the peak of this process above its level before the run, without the clients, which are other processes.
``window`` is the part of it that unanswered messages may need: the largest sum of 16 messages in a row.
"""

import argparse
import logging
import statistics
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from heterofl_flwr import Evaluation, HeteroFL, HeteroFLError, LocalGrid, RayGrid, Slicing, Windowed
from heterofl_flwr.client.queries import answer_capability
from heterofl_flwr.nn import PAPER
from heterofl_flwr.training import give_back_freed_memory
from heterofl_flwr.transport import messages
from simulations.bench.measure import Goal, medians, peak_of, print_row
from simulations.program import Records

APP = "simulations.bench.scale:app"
MIX = "a1-b1-c1-d1-e1"
ROUNDS = 3
"""Number of rounds of each run."""


class Measured(NamedTuple):
    """Measurements of a run."""

    first: float  # seconds of the first round
    later: float  # mean seconds of the other rounds
    peak: int  # peak memory of the server in bytes
    window: int  # bytes of unanswered messages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=10_000, help="clients that are registered")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 200, 500, 1000], help="clients of a round")
    model = "the paper's model of this data"
    parser.add_argument("--model", choices=["cifar10", "mnist"], default="cifar10", help=model)
    parser.add_argument("--actors", type=int, default=2, help="Ray actors, for the clients; 0: this process")
    parser.add_argument("--window", type=int, default=16, help="messages that may be sent and not answered")
    parser.add_argument("--rounds", type=int, default=3, help=f"runs of {ROUNDS} rounds of each size, taking turns")


def run(options: argparse.Namespace) -> list[Goal]:
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it logs each round
    give_back_freed_memory()
    torch.set_num_threads(1)  # several threads would wait for one another on a busy machine
    options.sizes.sort()  # the goals compare the largest with the smallest
    strategies = {size: make_strategy(options, size) for size in options.sizes}
    model = sum(4 * value.numel() for value in strategies[options.sizes[0]].federation.architecture.model.parameters())
    print(f"{options.nodes} clients, {options.actors} actors; mix {MIX}, dynamic; seed 0")
    print(f"a window of {options.window} messages; median of {options.rounds} runs; a model is {model / 1e6:.1f} MB\n")
    found: dict[int, list[Measured]] = {size: [] for size in options.sizes}
    many, nodes = options.actors, options.nodes
    with RayGrid(APP, nodes, at_once=many) if many else LocalGrid(APP, nodes) as grid:
        measure = partial(measure_run, grid=Windowed(grid, options.window), window=options.window)
        measure(strategies[options.sizes[0]], size=options.sizes[0])  # warms up
        for size in options.sizes * options.rounds:
            found[size].append(measure(strategies[size], size=size))
    return report(found, model)


def make_strategy(options: argparse.Namespace, size: int) -> HeteroFL:
    return HeteroFL(
        PAPER[options.model].build(),
        MIX,
        slicing=Slicing(assignment="dynamic"),
        fraction_train=size / options.nodes,
        evaluation=Evaluation(every=0),
        callbacks=[Records()],
    )


def measure_run(strategy: HeteroFL, *, grid: Grid, size: int, window: int) -> Measured:
    """Run rounds of ``size`` clients; return the measurements."""
    results: list[Result] = []
    records: Records = strategy.callbacks[0]  # type: ignore[assignment]
    records.clear()
    peak = peak_of(lambda: results.append(strategy.start(grid, num_rounds=ROUNDS)))
    for record in records:
        if len(record.rates) != size or record.failures:
            failed = f"{len(record.failures)} of {len(record.rates)} clients failed"
            raise HeteroFLError(f"{failed}, expected {size} good ones")
    arrays = dict(results[0].arrays.to_torch_state_dict())  # unchanged slices have the model as their mean
    torch.testing.assert_close(arrays, dict(strategy.federation.architecture.initial_state()), rtol=1e-4, atol=1e-6)
    first, *later = (record.seconds for record in records)
    plan = strategy.federation.architecture.plan
    sent = [[4 * plan(rate).parameters for rate in record.rates.values()] for record in records]
    most = max(most_in_a_row(sizes, window) for sizes in sent)
    return Measured(first, statistics.mean(later), peak, most)


def most_in_a_row(sizes: Sequence[int], number: int) -> int:
    """Return the largest sum of ``number`` consecutive sizes."""
    return max(sum(sizes[first : first + number]) for first in range(max(len(sizes) - number, 0) + 1))


def report(found: dict[int, list[Measured]], model: int) -> list[Goal]:
    """Print the table of measurements in medians, with memory in sizes of the model; return the goals."""
    print_row("clients", ("first round, s", "later round, s", "ms a client", "memory", "window", "memory less it"))
    milliseconds, rests = [], []
    for size, runs in found.items():
        first, later, peak, window = medians(runs)
        milliseconds.append(later * 1e3 / size)
        rests.append(statistics.median(run.peak - run.window for run in runs) / model)
        print_row(size, (first, later, milliseconds[-1], peak / model, window / model, rests[-1]))
    largest = "a client's time in the largest rounds, in times that in the smallest"
    return [
        Goal("memory beside the window in models, most", max(rests), most=3),
        Goal(largest, milliseconds[-1] / milliseconds[0], most=1.25),
    ]


app = ClientApp()
app.query("capability")(answer_capability)


@app.train()
def train_message(message: Message, context: Context) -> Message:
    del context
    content = RecordDict({messages.ARRAYS: message.content[messages.ARRAYS], messages.CONFIG: messages.new_config({})})
    content[messages.METRICS] = MetricRecord({messages.NUM_EXAMPLES: 1})
    return Message(content, reply_to=message)
