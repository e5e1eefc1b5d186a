"""The callbacks that the settings name."""

from collections.abc import Callable
from typing import cast

from heterofl_flwr.app.task import Task, load_function
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.methods.callbacks import RoundCallback
from heterofl_flwr.report import Costs, EarlyStopping, MLflow, Recorder, RunFolder, TensorBoard, WandB
from heterofl_flwr.settings import to_flat

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
