"""Our side: strategy, ClientApp, processes and settings of ``heterofl run --grid local``."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import nn

from heterofl_flwr.app.callbacks import CentralEvaluation
from heterofl_flwr.app.cli.main import parser
from heterofl_flwr.app.cli.run import build_request
from heterofl_flwr.app.launch.request import Request
from heterofl_flwr.app.launch.running import cohort_limit, cost, count_processes
from heterofl_flwr.app.server_app import make_strategy
from heterofl_flwr.app.task import task_of
from heterofl_flwr.client import load_parameters
from heterofl_flwr.core import Plan
from heterofl_flwr.data import Split
from heterofl_flwr.federation.records import Progress, RoundCallback
from heterofl_flwr.grids import LocalGrid, Windowed
from heterofl_flwr.nn import CNN, PAPER, with_static_norm
from heterofl_flwr.nn.execution import torch_threads
from simulations.bench import plain_loop
from simulations.bench.aggregate import Case, average_plainly
from simulations.bench.ready_app import READY
from simulations.reference.rounds import MIX, Experiment, Model, Parts, balanced_seed, is_balanced, members

APP = "simulations.bench.ready_app:app"


def request(
    experiment: Experiment, folder: Path, *options: str, settings: Mapping[str, object] = MappingProxyType({})
) -> Request:
    """Return what ``heterofl run`` makes of an experiment, more options and settings; it runs in ``folder``."""
    own: dict[str, object] = {"data.root": experiment.root, "data.split": experiment.split, "mix": experiment.mix}
    own |= {"sample.fraction": experiment.fraction, "engine.device": "cpu"}
    words = [word for key, value in {**own, **settings}.items() for word in ("--set", f"{key}={value}")]
    where = ["--resume" if (folder / "history.jsonl").exists() else "--out", str(folder)]
    line = ["run", "--data", "mnist", "--clients", str(experiment.clients), *where, *options, *words]
    return build_request(parser().parse_args(line))


def local_grid(asked: Request) -> LocalGrid:
    """Return the grid that ``heterofl run --grid local`` makes; its clients also know the query ``ready``."""
    return LocalGrid(
        APP,
        asked.clients,
        processes=count_processes(asked),
        cohort=cohort_limit(asked),
        run_config=asked.config,
        cost=cost,
    )


class TimedGrid(Windowed):
    """Adds up for how long each type of message keeps the strategy busy, aggregation included."""

    def __init__(self, grid: LocalGrid, window: int) -> None:
        super().__init__(grid, window)
        self.seconds: dict[str, float] = defaultdict(float)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield the replies."""
        start = time.perf_counter()
        sent = list(messages)
        yield from super().send_and_receive(sent, timeout=timeout)
        self.seconds[sent[0].metadata.message_type] += time.perf_counter() - start


class Last(RoundCallback):
    """Keeps what is known after the last round."""

    progress: Progress

    def on_round_end(self, progress: Progress) -> bool:
        self.progress = progress
        return False


class Ours:
    """Rounds of ours, each with the same evaluation as the other side's: static batch norm, global and local.

    The server itself does not evaluate, because the clients' test parts together are the whole test set, and each
    client measures its part with and without its mask in one pass.
    """

    name = "heterofl-flwr"

    def __init__(self, experiment: Experiment) -> None:
        self.seed = balanced_seed(experiment.clients)
        self._experiment = experiment
        self._last = Last()

    def __enter__(self) -> Self:
        """Start the processes, and let each read its data."""
        start = time.perf_counter()
        self._folder = tempfile.TemporaryDirectory()
        options = ("--grid", "local", "--seed", str(self.seed))
        self._asked = asked = request(
            self._experiment, Path(self._folder.name), *options, settings={"assignment": "fix"}
        )
        self._default = task_of(asked.config)
        same = {"evaluate.every": 1, "evaluate.levels": False, "evaluate.central": False}
        self._strategy = make_strategy(task_of({**asked.config, **same}), [self._last])
        self._local = local_grid(asked)
        self._grid = TimedGrid(self._local, self._default.settings.engine.window)
        self._wait(list(self._local.get_node_ids())[: count_processes(asked)])
        self.start_seconds = time.perf_counter() - start
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        self._local.close()
        self._folder.cleanup()

    def round(self) -> tuple[Parts, Model]:
        """Run the first round, from the initial model."""
        self._grid.seconds.clear()
        self._strategy.start(self._grid, num_rounds=1)
        record, seconds = self._last.progress.record, self._grid.seconds
        if record.failures or not is_balanced(record.rates.values()):
            raise RuntimeError(f"expected two good clients of each level: {record.rates}, failed: {record.failures}")
        moments, test = seconds["query.moments"], seconds["evaluate"]
        found = record.evaluate
        # What is neither asking for moments nor testing counts as training: slicing, sending, averaging.
        rest = record.seconds - moments - test
        return Parts(rest, moments, test, found["global-accuracy"], found["local-accuracy"]), self._model()

    def default_evaluation(self, *, levels: bool) -> float:
        """Return the seconds of our default evaluation of the last round's model, centrally too, and maybe by level."""
        strategy = make_strategy(task_of({**self._asked.config, "evaluate.levels": levels}), ())
        arrays = ArrayRecord(dict(self._last.progress.state))
        due = self._default.settings.evaluate.every
        start = time.perf_counter()
        messages = strategy.configure_evaluate(due, arrays, ConfigRecord(), self._grid)
        strategy.aggregate_evaluate(due, self._grid.send_and_receive(messages))
        CentralEvaluation(strategy, self._default)(due, arrays)
        return time.perf_counter() - start

    @property
    def rounds(self) -> tuple[int, int]:
        """How many rounds a run has by default, and after how many it evaluates."""
        settings = self._default.settings
        return settings.num_rounds, settings.evaluate.every

    def _wait(self, nodes: Sequence[int]) -> None:
        """Wait until a client has read its data in each process."""
        asked = [Message(RecordDict(), node, READY) for node in nodes]
        failed = [reply.error.reason for reply in self._local.send_and_receive(asked) if reply.has_error()]
        if failed:
            raise RuntimeError(f"clients cannot read their data: {failed[0]}")

    def _model(self) -> Model:
        module = PAPER["mnist"].build()(1.0)
        load_parameters(module, self._last.progress.state)
        return Model.of(with_static_norm(module, self._strategy.moments[1.0]))


TESTED = 50
"""Examples of a batch of the test, as the authors have it."""


class Plain:
    """Rounds of the plain side: the same partitions, clients and options as ours."""

    name = "the plain loop"

    def __init__(self, experiment: Experiment, threads: int) -> None:
        self._threads = threads
        seed = balanced_seed(experiment.clients)
        torch.manual_seed(seed)
        self._task = task_of({"data.name": "mnist", "data.root": experiment.root, "mix": MIX, "seed": seed})
        self._rates = members(experiment.clients, seed)
        self._options = self._task.options(self._task.settings.train.lr)
        self._train = _pictures(self._task.dataset.train)
        self._test = _pictures(self._task.dataset.test)
        parts = [self._task.part(number, experiment.clients) for number in range(experiment.clients)]
        self._clients = [(_pictures(train), _pictures(test), classes) for train, test, classes in parts]

    def round(self) -> tuple[Parts, Model]:
        """Run the first round, from the initial model."""
        with torch_threads(self._threads):
            return self._round()

    def _round(self) -> tuple[Parts, Model]:
        model = PAPER["mnist"].build()(1.0)
        times = [perf_counter()]
        self._train_clients(model)
        times.append(perf_counter())
        static = plain_loop.with_moments(model, plain_loop.loader(self._train, self._options.batch_size))
        times.append(perf_counter())
        local, everywhere = plain_loop.Metrics(), plain_loop.Metrics()
        for _, own, classes in self._clients:
            plain_loop.test(static, plain_loop.loader(own, TESTED, range(len(own))), local, classes)
        plain_loop.test(static, plain_loop.loader(self._test, TESTED, range(len(self._test))), everywhere, None)
        times.append(perf_counter())
        train, moments, test = (end - start for start, end in pairwise(times))
        return Parts(train, moments, test, everywhere.accuracy, local.accuracy), Model.of(static)

    def _train_clients(self, model: nn.Module) -> None:
        """Train the round's clients one after the other, and load their mean."""
        state = {name: parameter.detach() for name, parameter in model.named_parameters()}
        replies = []
        for partition, rate in self._rates.items():
            local = PAPER["mnist"].build()(rate)
            plan = Plan.of(model, local)
            local.load_state_dict(plan.extract(state))
            train, _, classes = self._clients[partition]
            plain_loop.train(local, plain_loop.loader(train, self._options.batch_size), classes, self._options)
            replies.append((plan, {name: value.detach() for name, value in local.named_parameters()}, [*classes]))
        model.load_state_dict(average_plainly(Case(state, CNN.label_rows, replies)))


def _pictures(split: Split) -> plain_loop.Pictures:
    return plain_loop.Pictures(plain_loop.MNIST.pixels(split.inputs), split.targets, plain_loop.MNIST)
