"""The plain side: the same round in one process, client after client, in the authors' style but of our own writing."""

from functools import cache
from itertools import pairwise
from time import perf_counter
from types import TracebackType
from typing import Self

import torch
from torch import nn

from heterofl_flwr.app.task import task_of
from heterofl_flwr.core import Plan
from heterofl_flwr.data import Split
from heterofl_flwr.nn import CNN, PAPER
from simulations.benchmarks import plainly
from simulations.benchmarks.aggregate import Case, average_plainly
from simulations.benchmarks.processes import own_process
from simulations.benchmarks.rounds.checks import Model
from simulations.benchmarks.rounds.task import MIX, Experiment, Parts, balanced_seed, members

TESTED = 50
"""Examples of a batch of the test, as the authors have it."""


class Plain:
    """Rounds of the plain side, in a process of its own that keeps the data."""

    name = "the plain loop"

    def __init__(self, experiment: Experiment, threads: int) -> None:
        self._experiment = experiment
        self._process = own_process(threads)

    def __enter__(self) -> Self:
        """Read the data."""
        self._process.submit(_read, self._experiment).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._process.shutdown()

    def round(self) -> tuple[Parts, Model]:
        """Run the first round, from the initial model."""
        return self._process.submit(_play, self._experiment).result()


def _read(experiment: Experiment) -> None:
    _player(experiment)


def _play(experiment: Experiment) -> tuple[Parts, Model]:
    return _player(experiment).round()


@cache
def _player(experiment: Experiment) -> "_Player":
    return _Player(experiment)


class _Player:
    """The same deal, clients and options as ours."""

    def __init__(self, experiment: Experiment) -> None:
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
        model = PAPER["mnist"].build()(1.0)
        times = [perf_counter()]
        self._train_clients(model)
        times.append(perf_counter())
        static = plainly.with_moments(model, plainly.loader(self._train, self._options.batch_size))
        times.append(perf_counter())
        local, everywhere = plainly.Metrics(), plainly.Metrics()
        for _, own, classes in self._clients:
            plainly.test(static, plainly.loader(own, TESTED, range(len(own))), local, classes)
        plainly.test(static, plainly.loader(self._test, TESTED, range(len(self._test))), everywhere, None)
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
            plainly.train(local, plainly.loader(train, self._options.batch_size), classes, self._options)
            replies.append((plan, {name: value.detach() for name, value in local.named_parameters()}, [*classes]))
        model.load_state_dict(average_plainly(Case(state, CNN.label_rows, replies)))


def _pictures(split: Split) -> plainly.Pictures:
    return plainly.Pictures(plainly.MNIST.pixels(split.inputs), split.targets, plainly.MNIST)
