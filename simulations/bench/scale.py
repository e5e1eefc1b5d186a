"""The server's time and memory in rounds of 100 to 1,000 clients.

They are drawn from 10,000, have levels a to e of CIFAR10's model, drawn anew each round, and send their slices straight
back. So what is measured is the server: it cuts slices, sends them through a window of 16 messages, and averages the
replies. Each measurement is a run of two rounds, for what the first leaves behind is there in the second. Memory is the
peak of this process above its level before the run, when it holds no state of the model yet; the clients are other
processes. The window's share of it is what replies under way may hold: as the window moves along a round's messages,
the most bytes that 16 in a row have.

With ``--step`` rounds do not wait: so many clients as a round would have train at any time, and the model takes a step
for every so many replies. All who train are under way then, so the window is as large; a run has three times as many
replies.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from heterofl_flwr import Buffered, Evaluation, HeteroFL, HeteroFLError, LocalGrid, RayGrid, Windowed
from heterofl_flwr.client.node_config import answer_capability
from heterofl_flwr.federation.records import Progress, RoundCallback, RoundRecord, RunState
from heterofl_flwr.nn import PAPER
from heterofl_flwr.strategies.arrivals import Arrivals
from heterofl_flwr.strategies.round_messages import Budget
from heterofl_flwr.training import give_back_freed_memory
from heterofl_flwr.transport import messages
from simulations.bench.measure import Goal, peak_of

APP = "simulations.bench.scale:app"
MIX = "a1-b1-c1-d1-e1"
ROUNDS = 2
"""Of each run."""

TURNS = 3
"""Of each place of those that train at any time, in a run of steps."""

Measured = tuple[float, float, float]
"""Of a run: milliseconds of a round for each of its clients, bytes that the server adds, those of replies under way."""


class Records(list[RoundRecord], RoundCallback):
    """Keeps the records of all rounds."""

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
    parser.add_argument("--step", type=int, default=0, help="replies of a step; 0: rounds that wait")
    parser.add_argument("--rounds", type=int, default=3, help=f"runs of {ROUNDS} rounds of each size, taking turns")


def run(options: argparse.Namespace) -> list[Goal]:
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it logs each round
    give_back_freed_memory()
    strategies = {size: make_strategy(options.model, MIX, options.step, size) for size in options.sizes}
    model = sum(4 * value.numel() for value in strategies[options.sizes[0]].federation.architecture.model.parameters())
    way = f"steps of {options.step} replies" if options.step else f"rounds, a window of {options.window} messages"
    print(
        f"{options.nodes} clients, {options.actors} actors; {way}; mix {MIX}, dynamic; seed 0; median of "
        f"{options.rounds} runs; a model is {model / 1e6:.1f} MB\n"
    )
    found: dict[int, list[Measured]] = {size: [] for size in options.sizes}
    many, nodes = options.actors, options.nodes
    with RayGrid(APP, nodes, at_once=many) if many else LocalGrid(APP, nodes) as grid:
        start = time.perf_counter()
        for strategy in strategies.values():
            Arrivals(grid, strategy.federation, 1, Budget(3600.0)).wait()
        each = (time.perf_counter() - start) / len(strategies)
        print(f"registration: {each:.1f} s, {each * 1e3 / options.nodes:.2f} ms a client\n")
        windowed = grid if options.step else Windowed(grid, options.window)
        measure = partial(measure_run, grid=windowed, nodes=options.nodes, window=options.window)
        first = min(options.sizes)
        measure(strategies[first], size=first, first_round=2)  # warms up
        for number, size in enumerate(options.sizes * options.rounds, 1):
            found[size].append(measure(strategies[size], size=size, first_round=2 + ROUNDS * number))
    return report(found, model)


def make_strategy(model: str, mix: str, step: int = 0, size: int = 0) -> HeteroFL:
    build, never = PAPER[model].build(), Evaluation(every=0)
    steps = Buffered(size=step, concurrency=size if step else 0)
    return HeteroFL(build, mix, assignment="dynamic", evaluation=never, callbacks=[Records()], asynchronous=steps)


def measure_run(strategy: HeteroFL, *, grid: Grid, size: int, first_round: int, nodes: int, window: int) -> Measured:
    """Run rounds of so many clients, or steps while so many train."""
    step = strategy.options.asynchronous.size
    rounds, replies = (-(-TURNS * size // step), step) if step else (ROUNDS, size)
    sampling = replace(strategy.options.sampling, fraction_train=size / nodes)
    strategy.federation.options = replace(strategy.options, sampling=sampling)
    results: list[Result] = []
    records: Records = strategy.callbacks[0]  # type: ignore[assignment]
    records.clear()

    def play() -> None:
        # From round 2 on it does not ask the clients anew.
        before = RunState(server_round=first_round - 1, state=strategy.federation.architecture.initial_state())
        results.append(strategy.start(grid, num_rounds=first_round + rounds - 1, resume=before))

    peak = peak_of(play)
    for record in records:
        if len(record.rates) != replies or record.failures:
            failed = f"{len(record.failures)} of {len(record.rates)} clients failed"
            raise HeteroFLError(f"{failed}, expected {replies} good ones")
    check_same(results[0].arrays, strategy)
    seconds = statistics.mean(record.seconds for record in records)
    bytes_by_rate = {
        rate: 4 * strategy.federation.architecture.plan(rate).parameters for rate in strategy.federation.mix.rates
    }
    sent = [[bytes_by_rate[rate] for rate in record.rates.values()] for record in records]
    # Steps follow one another without a break, and all who train are under way.
    sent, window = ([[own for one in sent for own in one]], size) if step else (sent, window)
    return seconds * 1e3 / replies, peak, max(most_in_a_row(sizes, window) for sizes in sent)


def most_in_a_row(sizes: Sequence[int], number: int) -> int:
    """Return the largest sum of so many neighbours."""
    return max(sum(sizes[first : first + number]) for first in range(max(len(sizes) - number, 0) + 1))


def check_same(arrays: ArrayRecord, strategy: HeteroFL) -> None:
    """Raise if the mean of the clients' slices is not the model that they were cut from; sums of many are rounded."""
    for name, expected in strategy.federation.architecture.initial_state().items():
        torch.testing.assert_close(arrays[name].numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)


def report(found: dict[int, list[Measured]], model: int) -> list[Goal]:
    print(f"{'clients':>7}{'ms each':>10}{'memory':>16}{'window':>16}{'memory less window':>20}")
    milliseconds, rests = [], []
    for size, runs in found.items():
        each, peak, window = (statistics.median(values) for values in zip(*runs, strict=True))
        milliseconds.append(each)
        rests.append(statistics.median(peak - window for _, peak, window in runs) / model)
        print(
            f"{size:>7}{each:>10.2f}{peak / model:>9.2f} models{window / model:>9.2f} models{rests[-1]:>13.2f} models"
        )
    largest = "a client's time in the largest rounds, in times that in the smallest"
    return [
        Goal("memory beside the window in models, most", max(rests), most=3),
        Goal(largest, milliseconds[-1] / milliseconds[0], most=1.25),
    ]


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
