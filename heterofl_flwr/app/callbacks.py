"""What the server evaluates by itself, and the callbacks that the settings name."""

from collections.abc import Mapping
from typing import cast

from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor

from heterofl_flwr import packing
from heterofl_flwr.app.task import Task
from heterofl_flwr.errors import ConfigError, load_function
from heterofl_flwr.federation.families import with_families, within
from heterofl_flwr.federation.records import RoundCallback
from heterofl_flwr.local_model import for_evaluation, model_at
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.report import Costs, EarlyStopping, MLflow, Recorder, RunFolder, TensorBoard, WandB
from heterofl_flwr.settings import to_flat
from heterofl_flwr.strategies.heterofl import HeteroFL
from heterofl_flwr.strategies.hybrid import Hybrid

PROJECT = "heterofl-flwr"


class CentralEvaluation:
    """The global model, or that of each family, on the whole test set."""

    def __init__(self, strategy: HeteroFL, task: Task) -> None:
        self._strategy, self._task = strategy, task

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Return accuracy and loss without any mask."""
        strategy, state = self._strategy, packing.read_tensors(arrays, "the server")
        if not isinstance(strategy, Hybrid):
            return MetricRecord(dict(self._evaluate(server_round, self._task.build, state, strategy.moments)))
        found = {
            name: self._evaluate(server_round, build, within(name, state), strategy.engine.prefix_moments.get(name, {}))
            for name, build in self._task.families.items()
        }
        return MetricRecord(dict(with_families(found)))

    def _evaluate(
        self, server_round: int, build: Build, state: Mapping[str, Tensor], moments: Mapping[float, Moments]
    ) -> dict[str, float]:
        rate = self._task.mix.global_rate
        model = for_evaluation(model_at(build, state, rate, rate), moments.get(rate))
        test = self._task.whole_test(self._strategy.federation.nodes.dealt())
        return self._task.evaluate_centrally(model.to(self._task.device), test, server_round).metrics("global")


def build_callbacks(task: Task, folder: RunFolder | None) -> list[RoundCallback]:
    """Return the recorder of the run folder, and what ``run.callbacks`` names."""
    run, strategy = task.settings.run, task.settings.server.strategy
    metric = run.metric or None  # without one, the recorder and early stopping follow the same
    found: list[RoundCallback] = []
    if folder is not None:
        builds = task.families if strategy == "hybrid" else task.build
        # The models of FedH2L have no levels, and travel nowhere.
        costs = None if strategy == "fedh2l" else Costs(builds, task.mix, task.example())
        found.append(Recorder(folder, run.checkpoint_every, metric=metric, costs=costs, models=not task.personal))
    if run.patience:
        # A run that is resumed must stop in the round in which it would have stopped without a break.
        history = folder.history() if folder is not None and run.resume else ()
        found.append(EarlyStopping(metric, run.patience, history=history))
    # Without a folder the default, tensorboard, has nowhere to write.
    names = [name for name in run.callbacks if folder is not None or name != "tensorboard"]
    return found + [_build_callback(name, task, folder) for name in names]


def _build_callback(name: str, task: Task, folder: RunFolder | None) -> RoundCallback:
    """Return a callback of ours, or a user's own."""
    if ":" in name:
        return cast("RoundCallback", load_function(name, "run.callbacks")())
    if name == "tensorboard" and folder is not None:
        return TensorBoard(folder)
    settings = to_flat(task.settings)
    own_name = folder.path.resolve().name if folder else None
    if name == "wandb":
        return WandB(PROJECT, settings=settings, folder=folder, options={"name": own_name})
    if name == "mlflow":
        return MLflow(PROJECT, settings=settings, folder=folder, options={"run_name": own_name})
    raise ConfigError(f"run.callbacks names {name!r}; expected tensorboard, wandb, mlflow or 'module:name'")
