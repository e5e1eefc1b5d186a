"""The ServerApp behind ``flwr run``: HeteroFL as the settings say, with records, checkpoints and a report."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from heterofl_flwr import messages as wire
from heterofl_flwr.app.callbacks import callbacks_of
from heterofl_flwr.app.launch.gpus import cores
from heterofl_flwr.app.task import Task, task_of
from heterofl_flwr.client import load_parameters
from heterofl_flwr.core.seeds import derive
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids import Windowed
from heterofl_flwr.learn import evaluate, give_back_freed_memory
from heterofl_flwr.methods.callbacks import RoundCallback
from heterofl_flwr.methods.evaluation import Evaluation
from heterofl_flwr.methods.fedh2l import FedH2L
from heterofl_flwr.methods.heterofl import HeteroFL
from heterofl_flwr.methods.schedule import multi_step
from heterofl_flwr.nn.static_norm import with_static_norm
from heterofl_flwr.report import Checkpoint, RunFolder, write_report
from heterofl_flwr.settings import Settings, to_flat

logger = logging.getLogger(__name__)

MAY_DIFFER_ON_RESUME = ("num-rounds", "run.resume", "run.dir", "data.root", "engine.device", "engine.window")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run HeteroFL."""
    _log_beside_flower()
    run(grid, task_of(context.run_config))


def run(grid: Grid, task: Task, extra_callbacks: Sequence[RoundCallback] = ()) -> HeteroFL:
    """Run HeteroFL on any grid; with ``run.dir``, leave a folder that tells all about it."""
    give_back_freed_memory()
    settings = task.settings
    folder = RunFolder(settings.run.dir) if settings.run.dir else None
    start = _start(folder, settings)
    strategy = make_strategy(task, (*callbacks_of(task, folder), *extra_callbacks))
    strategy.federation.velocity = dict(start.velocity)
    strategy.start(
        Windowed(grid, settings.engine.window) if settings.engine.window else grid,
        initial_arrays=start.arrays,
        num_rounds=settings.num_rounds,
        timeout=settings.engine.timeout,
        # Where clients have models of their own, there is none for the server to evaluate.
        evaluate_fn=CentralEvaluation(strategy, task) if settings.evaluate.central and not task.personal else None,
        first_round=start.first_round,
    )
    if folder is not None:
        number = strategy.federation.nodes.dealt()
        if number and (deal := task.deal(number)):
            folder.write_deal(deal)
        logger.info("Report: %s", write_report(folder))
    return strategy


def make_strategy(task: Task, callbacks: Sequence[RoundCallback]) -> HeteroFL:
    """Return the strategy that the settings describe."""
    settings = task.settings
    train, sample, evaluation = settings.train, settings.sample, settings.evaluate
    common: dict[str, Any] = {
        "seed": settings.seed,
        "fraction_train": sample.fraction,
        "min_available_nodes": sample.min_nodes,
        "min_replies": sample.min_replies,
        "wait": sample.wait,
        "learning_rate": multi_step(train.lr, train.milestones, train.factor),
        "evaluation": Evaluation(every=evaluation.every, nodes=evaluation.nodes, levels=evaluation.levels),
        "callbacks": callbacks,
    }
    if settings.server.strategy == "fedh2l":
        distill = settings.distill
        return FedH2L(
            task.dataset.classes,
            seed_size=distill.seed_size,
            seed_batch=distill.seed_batch,
            temperature=distill.temperature,
            **common,
        )
    return HeteroFL(
        task.build,
        settings.mix,
        assignment=settings.assignment,
        upload=train.upload,
        choose=settings.server.choose,
        shared=settings.server.shared,
        weights=settings.server.weights,
        fidelity=settings.fidelity.to_core(),
        server_momentum=settings.server.momentum,
        **common,
    )


class CentralEvaluation:
    """The global model on the whole test set, which the server holds in a simulation."""

    def __init__(self, strategy: HeteroFL, task: Task) -> None:
        self._strategy = strategy
        self._task = task

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Return accuracy and loss without any mask."""
        rate = self._task.mix.global_rate
        with torch.random.fork_rng(devices=[]):
            model = self._task.build(rate)
        load_parameters(model, wire.tensors_of(arrays, "the server"))
        if rate in self._strategy.moments:
            model = with_static_norm(model, self._strategy.moments[rate])
        with _all_cores():
            result = evaluate(
                model.to(self._task.device),
                self._task.test,
                seed=derive(self._task.settings.seed, "central", server_round),
                perplexity_kind=self._task.settings.fidelity.perplexity,
            )
        return MetricRecord(dict(result.metrics("global")))


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let torch use all cores: clients wait while the server evaluates."""
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins."""

    first_round: int
    arrays: ArrayRecord | None
    velocity: dict[str, torch.Tensor]


def _start(folder: RunFolder | None, settings: Settings) -> Start:
    """Make the run folder ready; go on from its checkpoint where asked."""
    if folder is None:
        if settings.run.resume:
            raise ConfigError("run.resume is true, but run.dir names no folder: name the folder of the run to resume")
        return Start(1, None, {})
    about = {"title": f"HeteroFL on {settings.data.name}, {settings.mix}", "device": settings.engine.device}
    folder.start(to_flat(settings), resume=settings.run.resume, may_differ=MAY_DIFFER_ON_RESUME, about=about)
    if not settings.run.resume:
        return Start(1, None, {})
    checkpoint: Checkpoint = folder.load_checkpoint()
    if checkpoint.server_round >= settings.num_rounds:
        raise ConfigError(
            f"the run in {folder.path} has done {checkpoint.server_round} rounds, and num-rounds is "
            f"{settings.num_rounds}: ask for more to go on"
        )
    return Start(checkpoint.server_round + 1, ArrayRecord(dict(checkpoint.state)), dict(checkpoint.momentum))


def _log_beside_flower() -> None:
    """Let this package's messages appear where Flower's do."""
    ours = logging.getLogger("heterofl_flwr")
    if not ours.handlers:
        ours.handlers = list(logging.getLogger("flwr").handlers)
        ours.setLevel(logging.INFO)
        ours.propagate = False
