"""The ServerApp behind ``flwr run``: HeteroFL as the settings say, with records, checkpoints and a report."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from heterofl_flwr.app.callbacks import callbacks_of
from heterofl_flwr.app.central import CentralEvaluation
from heterofl_flwr.app.devices import devices_of
from heterofl_flwr.app.task import Task, task_of
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids import Windowed
from heterofl_flwr.learn import give_back_freed_memory
from heterofl_flwr.methods.callbacks import RoundCallback
from heterofl_flwr.methods.evaluation import Evaluation
from heterofl_flwr.methods.fedh2l import FedH2L
from heterofl_flwr.methods.heterofl import HeteroFL
from heterofl_flwr.methods.hybrid import Hybrid
from heterofl_flwr.methods.schedule import multi_step
from heterofl_flwr.methods.tally import Tally
from heterofl_flwr.report import Checkpoint, RunFolder, write_report
from heterofl_flwr.report.history import before
from heterofl_flwr.settings import Settings, from_flat, to_flat
from heterofl_flwr.settings.model import EXCHANGES

logger = logging.getLogger(__name__)

MAY_DIFFER_ON_RESUME = (
    "num-rounds",
    "run.resume",
    "run.dir",
    "data.root",
    "sample.min-nodes",
    "sample.min-replies",
    "sample.wait",
    "engine.device",
    "engine.window",
    "engine.timeout",
)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run HeteroFL."""
    _log_beside_flower()
    run(grid, task_of(context.run_config))


def run(grid: Grid, task: Task, extra_callbacks: Sequence[RoundCallback] = ()) -> HeteroFL:
    """Run HeteroFL on any grid; with ``run.dir``, leave a folder that tells all about it."""
    give_back_freed_memory()
    folder = RunFolder(task.settings.run.dir) if task.settings.run.dir else None
    with nullcontext() if folder is None else folder.held():
        return _run(grid, task, folder, extra_callbacks)


def _run(grid: Grid, task: Task, folder: RunFolder | None, extra_callbacks: Sequence[RoundCallback]) -> HeteroFL:
    settings = task.settings
    start = _start(folder, settings)
    strategy = make_strategy(task, (*callbacks_of(task, folder), *extra_callbacks))
    strategy.federation.optimizer_state = dict(start.optimizer_state)
    if folder is not None:
        strategy.spent.keep_in(folder)
        if start.first_round > 1:
            strategy.tally = Tally.of(before(folder.history(), start.first_round))
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
        "spare": sample.spare,
        "min_available_nodes": sample.min_nodes,
        "min_replies": sample.min_replies,
        "wait": sample.wait,
        "privacy": settings.privacy.to_core(),
        "limits": settings.server.limits(),
        "learning_rate": multi_step(train.lr, train.milestones, train.factor),
        "evaluation": Evaluation(every=evaluation.every, nodes=evaluation.nodes, levels=evaluation.levels),
        "callbacks": callbacks,
        "devices": devices_of(task),
    }
    if settings.server.strategy in EXCHANGES and task.dataset.train.reading is not None:
        raise ConfigError(
            f"server.strategy={settings.server.strategy} exchanges what models say of the classes of examples, and the "
            f"data set {settings.data.name} is text: choose one with classes"
        )
    exchange: dict[str, Any] = {
        "classes": task.dataset.classes,
        "seed_size": settings.distill.seed_size,
        "seed_batch": settings.distill.seed_batch,
        "temperature": settings.distill.temperature,
    }
    if settings.server.strategy == "fedh2l":
        return FedH2L(mix=settings.mix, **exchange, **common)
    common |= {
        "assignment": settings.assignment,
        "upload": train.upload,
        "labels": train.labels if task.counts_labels else "sent",
        "choose": settings.server.choose,
        "shared": settings.server.shared,
        "weights": settings.server.weights,
        "fidelity": settings.fidelity.to_core(),
        "server_optimizer": settings.server.server_optimizer(),
    }
    if settings.server.strategy == "hybrid":
        return Hybrid(task.families, settings.mix, **exchange, **common)
    return HeteroFL(task.build, settings.mix, **common)


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins."""

    first_round: int
    arrays: ArrayRecord | None
    optimizer_state: dict[str, torch.Tensor]


def _start(folder: RunFolder | None, settings: Settings) -> Start:
    """Make the run folder ready; go on from its checkpoint where asked."""
    if folder is None:
        if settings.run.resume:
            raise ConfigError("run.resume is true, but run.dir names no folder: name the folder of the run to resume")
        return Start(1, None, {})
    about = {"title": f"HeteroFL on {settings.data.name}, {settings.mix}", "device": settings.engine.device}
    folder.start(
        to_flat(settings),
        resume=settings.run.resume,
        may_differ=MAY_DIFFER_ON_RESUME,
        about=about,
        # A setting that a later version adds has a default that leaves runs as they were.
        complete=lambda old: to_flat(from_flat(old)),
    )
    if not settings.run.resume:
        return Start(1, None, {})
    checkpoint: Checkpoint = folder.load_checkpoint()
    # One that died after its last round still has to write its models.
    done = settings.num_rounds + (not folder.about().get("finished"))
    if checkpoint.server_round >= done:
        raise ConfigError(
            f"the run in {folder.path} has done {checkpoint.server_round} rounds, and num-rounds is "
            f"{settings.num_rounds}: ask for more to go on"
        )
    return Start(checkpoint.server_round + 1, ArrayRecord(dict(checkpoint.state)), dict(checkpoint.optimizer))


def _log_beside_flower() -> None:
    """Let this package's messages appear where Flower's do."""
    ours = logging.getLogger("heterofl_flwr")
    if not ours.handlers:
        ours.handlers = list(logging.getLogger("flwr").handlers)
        ours.setLevel(logging.INFO)
        ours.propagate = False
