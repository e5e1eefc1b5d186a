"""One side of a comparison: this package, with the actors and settings of ``heterofl run --grid ray``."""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from heterofl_flwr.app import client_app
from heterofl_flwr.app.callbacks import evaluate_global
from heterofl_flwr.app.client_resources import open_grid
from heterofl_flwr.app.main import parser
from heterofl_flwr.app.request import Request, build_request
from heterofl_flwr.app.server_app import make_strategy
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.common.errors import DataError, HeteroFLError
from heterofl_flwr.grids import Windowed
from simulations.program import cores
from simulations.reference.rounds import Experiment, Parts, balanced_seed, is_balanced

APP = "simulations.bench.ours:app"
READY = "query.ready"

app = client_app.app


@app.query("ready")
def read_data(message: Message, context: Context) -> Message:
    """Read a client's data into memory, before measurements begin."""
    data = load_workload(context.run_config).part(0, int(context.node_config["num-partitions"]))
    sizes = {"train": len(data.train), "test": len(data.test)}
    return Message(RecordDict({READY: ConfigRecord({"process": os.getpid(), **sizes})}), reply_to=message)


def build_our_request(
    experiment: Experiment, folder: Path, *options: str, settings: Mapping[str, object] = MappingProxyType({})
) -> Request:
    """Return the request of ``heterofl run`` for an experiment, with more options and settings and a run folder."""
    own: dict[str, object] = {"data.root": experiment.root, "data.split": experiment.split, "mix": experiment.mix}
    own |= {"sample.fraction": experiment.fraction, "engine.device": "cpu"}
    words = [word for key, value in {**own, **settings}.items() for word in ("--set", f"{key}={value}")]
    line = ["run", "--data", "mnist", "--clients", str(experiment.clients), "--out", str(folder), *options, *words]
    return build_request(parser().parse_args(line))


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
    start, seed = time.perf_counter(), balanced_seed(experiment.clients)
    with tempfile.TemporaryDirectory() as folder:
        options = ("--grid", "ray", "--seed", str(seed))
        request = build_our_request(experiment, Path(folder), *options, settings={"assignment": "fix"})
        with open_grid(replace(request, client=APP)) as grid:
            ready: set[object] = set()
            while len(ready) < cores():  # the first actors answer before the others have started
                replies = grid.send_and_receive([Message(RecordDict(), node, READY) for node in grid.get_node_ids()])
                if failed := [reply.error.reason for reply in replies if reply.has_error()]:
                    raise DataError(f"clients cannot read their data: {failed[0]}")
                ready |= {reply.content.config_records[READY]["process"] for reply in replies}
            print(f"our seed {seed}; our actors start and read their data in {time.perf_counter() - start:.1f} s")
            yield Ours(request, grid)
