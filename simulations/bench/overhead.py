"""What a round of ten clients of level e takes beside their training alone, where the training takes least.

The overhead is 1 - (training / round). A round is all from the draw of its clients to the new global model, on a
``LocalGrid`` in this process or a ``RayGrid`` of one actor; the training is what of it the clients spend in
``train_together`` on the first. The global model is level a, which the one client that never trains holds.
"""

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from flwr.app import ArrayRecord, ConfigRecord

from heterofl_flwr.app import client_app
from heterofl_flwr.app.launch.request import Request
from heterofl_flwr.app.launch.running import cohort_limit
from heterofl_flwr.app.server_app import make_strategy
from heterofl_flwr.app.task import task_of
from heterofl_flwr.core import LEVELS
from heterofl_flwr.grids import LocalGrid, RayGrid
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.training import TrainResult, train_together
from simulations.bench.sides import request
from simulations.reference.rounds import Experiment, members

APP = "heterofl_flwr.app.client_app:app"
TOLERANCE = 1e-4
SERVER = "the server"


@dataclass(frozen=True, slots=True)
class Overhead:
    """Median seconds of the rounds and of their training alone."""

    round: float
    training: float

    @property
    def share(self) -> float:
        """What part of a round is not training."""
        return 1 - self.training / self.round


def measure(experiment: Experiment, rounds: int, *, ray: bool) -> dict[str, Overhead]:
    """Measure on ``LocalGrid`` and, if asked, on ``RayGrid`` with one client or group of them at a time."""
    mix = f"a1-e{experiment.clients - 1}"
    drawn = partial(members, experiment.clients, mix=mix)
    all_small = (  # the first seed with which only clients of level e train
        seed
        for seed in itertools.count()
        if all(set(drawn(seed, server_round=own + 1).values()) == {LEVELS["e"]} for own in range(rounds + 1))
    )
    seed = next(all_small)
    options = ("--seed", str(seed), "--rounds", str(rounds + 1), "--parallel", "1")
    settings: dict[str, object] = {"mix": mix, "assignment": "fix", "evaluate.every": 0}
    with tempfile.TemporaryDirectory() as folder:
        asked = request(experiment, Path(folder, "local"), "--grid", "local", *options, settings=settings)
        local = on_grid(LocalGrid, asked, rounds)
        if not ray:
            return {"LocalGrid": local}
        actor = on_grid(partial(RayGrid, at_once=1), asked, rounds)
        return {"LocalGrid": local, "RayGrid": Overhead(actor.round, local.training)}


def on_grid(make: Callable[..., LocalGrid | RayGrid], asked: Request, rounds: int) -> Overhead:
    """Measure rounds and what of them is training, after one whose time is thrown away."""
    task, cohort = task_of(asked.config), cohort_limit(asked)
    strategy = make_strategy(task, ())
    arrays = ArrayRecord(strategy.federation.initial_state())
    seconds: list[tuple[float, float]] = []
    with make(APP, asked.clients, cohort=cohort, run_config=asked.config) as grid, torch_threads(1):
        for server_round in range(1, rounds + 2):
            start = time.perf_counter()
            with _training_timed() as training:
                messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
                strategy.aggregate_train(server_round, grid.send_and_receive(messages))
            seconds.append((time.perf_counter() - start, sum(training)))
    return Overhead(*(statistics.median(own) for own in zip(*seconds[1:], strict=True)))


@contextlib.contextmanager
def _training_timed() -> Iterator[list[float]]:
    """Note the seconds of each call in which our ClientApp trains, in this process."""
    seconds: list[float] = []

    def timed(*arguments: Any, **options: Any) -> list[TrainResult]:
        start = time.perf_counter()
        try:
            return train_together(*arguments, **options)
        finally:
            seconds.append(time.perf_counter() - start)

    with mock.patch.object(client_app, "train_together", timed):
        yield seconds
