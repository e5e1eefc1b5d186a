"""The callbacks that the settings name."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor

from heterofl_flwr import messages as wire
from heterofl_flwr.app.launch.gpus import cores
from heterofl_flwr.app.task import Task, load_function
from heterofl_flwr.client import Build, load_parameters
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.families import with_families, within
from heterofl_flwr.federation.records import RoundCallback
from heterofl_flwr.nn.execution import torch_threads
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import with_static_norm
from heterofl_flwr.report import Costs, EarlyStopping, MLflow, Recorder, RunFolder, TensorBoard, WandB
from heterofl_flwr.settings import to_flat
from heterofl_flwr.strategies.heterofl import HeteroFL
from heterofl_flwr.strategies.hybrid import Hybrid
from heterofl_flwr.training import evaluate


class CentralEvaluation:
    """The global model, or that of each family, on the whole test set."""

    def __init__(self, strategy: HeteroFL, task: Task) -> None:
        self._strategy = strategy
        self._task = task

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Return accuracy and loss without any mask."""
        strategy, state = self._strategy, wire.tensors_of(arrays, "the server")
        if not isinstance(strategy, Hybrid):
            return MetricRecord(dict(self._judge(server_round, self._task.build, state, strategy.moments)))
        found = {
            name: self._judge(server_round, build, within(name, state), strategy.family_moments.get(name, {}))
            for name, build in self._task.families.items()
        }
        return MetricRecord(dict(with_families(found)))

    def _judge(
        self, server_round: int, build: Build, state: Mapping[str, Tensor], moments: Mapping[float, Moments]
    ) -> dict[str, float]:
        rate = self._task.mix.global_rate
        with torch.random.fork_rng(devices=[]):
            model = build(rate)
        load_parameters(model, state)
        if rate in moments:
            model = with_static_norm(model, moments[rate])
        with torch_threads(cores()):  # clients wait while the server evaluates
            result = evaluate(
                model.to(self._task.device),
                self._task.whole_test(self._strategy.federation.nodes.dealt()),
                seed=derive(self._task.settings.seed, "central", server_round),
                perplexity_kind=self._task.settings.fidelity.perplexity,
            )
        return result.metrics("global")


PROJECT = "heterofl-flwr"

Make = Callable[[Task, RunFolder | None], RoundCallback]


def callbacks_of(task: Task, folder: RunFolder | None) -> list[RoundCallback]:
    """Return the recorder of the run folder, and what ``run.callbacks`` names."""
    run = task.settings.run
    found: list[RoundCallback] = []
    if folder is not None:
        costs = _costs(task)
        found.append(
            Recorder(folder, run.checkpoint_every, metric=run.metric or None, costs=costs, models=not task.personal)
        )
    if run.patience:
        # A run that is resumed must stop in the round in which it would have stopped without a break.
        history = folder.history() if folder is not None and run.resume else ()
        found.append(EarlyStopping(run.metric or "global-accuracy", run.patience, history=history))
    for name in run.callbacks:
        if name == "tensorboard" and folder is None:
            continue  # the default, which has nowhere to write without a folder
        found.append(_make(name)(task, folder))
    return found


def _costs(task: Task) -> Costs | None:
    """Return what measures the models; those of FedH2L have no levels, and travel nowhere."""
    strategy = task.settings.server.strategy
    if strategy == "fedh2l":
        return None
    return Costs(task.families if strategy == "hybrid" else task.build, task.mix, task.example())


def _make(name: str) -> Make:
    if name in KNOWN:
        return KNOWN[name]
    if ":" in name:
        return lambda task, folder: cast("RoundCallback", load_function(name, "run.callbacks")())
    raise ConfigError(f"run.callbacks names {name!r}; expected {', '.join(KNOWN)} or 'module:name'")


def _tensorboard(task: Task, folder: RunFolder | None) -> RoundCallback:
    del task
    if folder is None:
        raise ConfigError("run.callbacks names tensorboard, which writes to the run's folder: set run.dir")
    return TensorBoard(folder)


def _wandb(task: Task, folder: RunFolder | None) -> RoundCallback:
    # A run that is resumed in its folder goes on there as well.
    return WandB(PROJECT, settings=to_flat(task.settings), run_id=folder.path.resolve().name if folder else None)


def _mlflow(task: Task, folder: RunFolder | None) -> RoundCallback:
    return MLflow(PROJECT, settings=to_flat(task.settings), options={"run_name": folder.path.name} if folder else {})


KNOWN: dict[str, Make] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
"""The callbacks that settings can name, beside a user's own."""
