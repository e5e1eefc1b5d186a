"""Time and memory of the server in rounds of 100 to 1,000 clients.

Clients are sampled from 10,000 and return their slices without training. Their levels (a to e of CIFAR10's model) are
drawn anew in each round. So the server is measured, in one thread: it makes slices, sends them in a window of 16
messages, and averages the replies. A measurement is a run of three rounds.

The first round is printed separately, because it also queries capabilities. It queries all clients, because sampling
needs their partitions; with ``--named`` (registered names, as in a deployment) it queries only the sampled clients.

Memory is the peak of this process above its level before the run, without the clients, which are other processes.
``window`` is the part of it that unanswered messages may need: the largest sum of 16 messages in a row. Bytes of a node
are those of the registry, which lasts from round to round.

With ``--step N`` training is asynchronous: as many clients as in a round always train, and the model takes a step
after N replies. The window is then the number of these clients, and a run has three times as many replies.
"""

import argparse
import logging
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from heterofl_flwr import Buffered, Evaluation, HeteroFL, HeteroFLError, LocalGrid, RayGrid, Slicing, Windowed
from heterofl_flwr.client.queries import answer_capability
from heterofl_flwr.federation.callbacks import Progress, RoundCallback
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.nn import PAPER
from heterofl_flwr.training import give_back_freed_memory
from heterofl_flwr.transport import messages
from simulations.bench.measure import Goal, peak_of

APP = "simulations.bench.scale:app"
MIX = "a1-b1-c1-d1-e1"
ROUNDS = 3
"""Number of rounds of each run."""

TURNS = 3
"""Number of replies in a run of steps, as a multiple of the clients that train at any time."""


class Measured(NamedTuple):
    """Measurements of a run."""

    first: float  # seconds of the first round
    later: float  # mean seconds of the other rounds
    replies: int  # replies of a round
    peak: float  # peak memory of the server in bytes
    window: int  # bytes of unanswered messages
    node: float  # bytes of the registry for each node


class Named:
    """Mixin for grids whose nodes have registered names, in another order than their ids."""

    @cache  # noqa: B019 - made once, as a SuperLink reads the names from its database
    def get_nodes(self) -> Any:
        ids = list(self.get_node_ids())  # type: ignore[attr-defined]
        return [SimpleNamespace(node_id=node_id, name=f"node-{number:07}") for number, node_id in enumerate(ids)]


class NamedLocalGrid(Named, LocalGrid):
    """A LocalGrid whose nodes have names."""


class NamedRayGrid(Named, RayGrid):
    """A RayGrid whose nodes have names."""


class Records(list[RoundRecord], RoundCallback):
    """Callback that stores the records of all rounds."""

    def on_round_end(self, progress: Progress) -> bool:
        self.append(progress.record)
        return False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=10_000, help="clients that are registered")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 200, 500, 1000], help="clients of a round")
    model = "the paper's model of this data"
    parser.add_argument("--model", choices=["cifar10", "mnist"], default="cifar10", help=model)
    parser.add_argument("--actors", type=int, default=2, help="Ray actors, for the clients; 0: this process")
    parser.add_argument("--window", type=int, default=16, help="messages that may be sent and not answered")
    parser.add_argument("--named", action="store_true", help="nodes have registered names, as in a deployment")
    parser.add_argument("--step", type=int, default=0, help="replies of a step; 0: rounds that wait")
    parser.add_argument("--rounds", type=int, default=3, help=f"runs of {ROUNDS} rounds of each size, taking turns")


def run(options: argparse.Namespace) -> list[Goal]:
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it logs each round
    give_back_freed_memory()
    torch.set_num_threads(1)  # several threads would wait for one another on a busy machine
    options.sizes.sort()  # the goals compare the largest with the smallest
    strategies = {size: make_strategy(options, size) for size in options.sizes}
    model = sum(4 * value.numel() for value in strategies[options.sizes[0]].federation.architecture.model.parameters())
    way = f"steps of {options.step} replies" if options.step else f"rounds, a window of {options.window} messages"
    print(
        f"{options.nodes} clients, {options.actors} actors; {way}; mix {MIX}, dynamic; seed 0; median of "
        f"{options.rounds} runs; a model is {model / 1e6:.1f} MB\n"
    )
    found: dict[int, list[Measured]] = {size: [] for size in options.sizes}
    many, nodes = options.actors, options.nodes
    ray, local = (NamedRayGrid, NamedLocalGrid) if options.named else (RayGrid, LocalGrid)
    with ray(APP, nodes, at_once=many) if many else local(APP, nodes) as grid:
        windowed = grid if options.step else Windowed(grid, options.window)
        measure = partial(measure_run, grid=windowed, nodes=options.nodes, window=options.window)
        measure(strategies[options.sizes[0]], size=options.sizes[0])  # warms up
        for size in options.sizes * options.rounds:
            found[size].append(measure(strategies[size], size=size))
    return report(found, model, named=options.named)


def make_strategy(options: argparse.Namespace, size: int) -> HeteroFL:
    return HeteroFL(
        PAPER[options.model].build(),
        MIX,
        slicing=Slicing(assignment="dynamic"),
        fraction_train=size / options.nodes,
        evaluation=Evaluation(every=0),
        callbacks=[Records()],
        asynchronous=Buffered(size=options.step, concurrency=size if options.step else 0),
    )


def measure_run(strategy: HeteroFL, *, grid: Grid, size: int, nodes: int, window: int) -> Measured:
    """Run rounds of ``size`` clients, or steps while ``size`` clients train; return the measurements."""
    step = strategy.options.asynchronous.size
    rounds, replies = (-(-TURNS * size // step), step) if step else (ROUNDS, size)
    results: list[Result] = []
    records: Records = strategy.callbacks[0]  # type: ignore[assignment]
    records.clear()

    def play() -> None:
        results.append(strategy.start(grid, num_rounds=rounds))

    peak = peak_of(play)
    for record in records:
        if len(record.rates) != replies or record.failures:
            failed = f"{len(record.failures)} of {len(record.rates)} clients failed"
            raise HeteroFLError(f"{failed}, expected {replies} good ones")
    check_same(results[0].arrays, strategy)
    first, *later = (record.seconds for record in records)
    bytes_by_rate = {
        rate: 4 * strategy.federation.architecture.plan(rate).parameters for rate in strategy.federation.mix.rates
    }
    sent = [[bytes_by_rate[rate] for rate in record.rates.values()] for record in records]
    # Asynchronous steps follow without a break, and the messages of all training clients are unanswered.
    sent, window = ([[own for one in sent for own in one]], size) if step else (sent, window)
    most = max(most_in_a_row(sizes, window) for sizes in sent)
    registry = deep_size(strategy.federation.nodes) / nodes
    return Measured(first, statistics.mean(later), replies, peak, most, registry)


def deep_size(value: object) -> int:
    """Return the bytes of an object and of all objects that it refers to, each counted once."""
    seen: dict[int, object] = {}
    waiting = [value]
    while waiting:
        if id(value := waiting.pop()) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | set | frozenset | tuple):
            waiting += value
        elif hasattr(value, "__dict__"):
            waiting.append(vars(value))
    return sum(map(sys.getsizeof, seen.values()))


def most_in_a_row(sizes: Sequence[int], number: int) -> int:
    """Return the largest sum of ``number`` consecutive sizes."""
    return max(sum(sizes[first : first + number]) for first in range(max(len(sizes) - number, 0) + 1))


def check_same(arrays: ArrayRecord, strategy: HeteroFL) -> None:
    """Raise ``AssertionError`` if the mean of unchanged slices differs from the model by more than rounding."""
    for name, expected in strategy.federation.architecture.initial_state().items():
        torch.testing.assert_close(arrays[name].numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)


def report(found: dict[int, list[Measured]], model: int, *, named: bool) -> list[Goal]:
    print(
        f"{'clients':>7}{'first round':>14}{'later rounds':>14}{'ms each':>10}{'memory':>16}{'window':>16}"
        f"{'memory less window':>20}{'bytes a node':>14}"
    )
    medians, milliseconds, rests = [], [], []
    for size, runs in found.items():
        own = Measured(*(statistics.median(values) for values in zip(*runs, strict=True)))
        medians.append(own)
        milliseconds.append(own.later * 1e3 / own.replies)
        rests.append(statistics.median(run.peak - run.window for run in runs) / model)
        print(
            f"{size:>7}{own.first:>12.2f} s{own.later:>12.2f} s{milliseconds[-1]:>10.2f}{own.peak / model:>9.2f} models"
            f"{own.window / model:>9.2f} models{rests[-1]:>13.2f} models{own.node:>14.0f}"
        )
    largest = "a client's time in the largest rounds, in times that in the smallest"
    goals = [
        Goal("memory beside the window in models, most", max(rests), most=3),
        Goal(largest, milliseconds[-1] / milliseconds[0], most=1.25),
        Goal("bytes a node, most", max(own.node for own in medians), most=1000),
    ]
    if named:
        times = max(own.first / own.later for own in medians)
        goals += [
            Goal("a first round, in times a later one, most", times, most=2),
            Goal("seconds of a later round of the fewest clients", medians[0].later, most=0.2),
        ]
    return goals


app = ClientApp()


@app.query("capability")
def capability_query(message: Message, context: Context) -> Message:
    return answer_capability(message, context)


@app.train()
def train_message(message: Message, context: Context) -> Message:
    del context
    content = RecordDict({messages.ARRAYS: message.content[messages.ARRAYS], messages.CONFIG: messages.new_config({})})
    content[messages.METRICS] = MetricRecord({messages.NUM_EXAMPLES: 1})
    return Message(content, reply_to=message)
