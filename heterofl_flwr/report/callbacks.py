"""Callbacks that send curves to experiment trackers, which are installed on demand."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from heterofl_flwr.errors import extra
from heterofl_flwr.federation.records import Progress, RoundCallback, State
from heterofl_flwr.runs import RunFolder
from heterofl_flwr.runs.metrics import scalars
from heterofl_flwr.settings import flatten


class _Tracker(RoundCallback):
    """Sends every number of every round to what ``on_start`` opens and puts into ``_log`` and ``_close``."""

    _log: Callable[..., object]
    _close: Callable[[], object] | None = None

    def on_round_end(self, progress: Progress) -> bool:
        """Send one round."""
        self._log(scalars(progress.record), step=progress.record.server_round)
        return False

    def on_last_evaluation(self, progress: Progress) -> None:
        """Send the last round again, with what it was evaluated for as the last."""
        self.on_round_end(progress)

    def on_end(self, state: State) -> None:
        """Close the run there."""
        if self._close:
            self._close()


class TensorBoard(_Tracker):
    """Writes every number of every round into the run's ``events`` folder.

    When a run goes on from a checkpoint, TensorBoard drops the rounds that are run again.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Open a new file of events."""
        with extra("report", "leave tensorboard out of run.callbacks"):  # here, as it is slow and may load TensorFlow
            from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self._folder.events), purge_step=first_round if first_round > 1 else None)

        def log_scalars(numbers: Mapping[str, float], step: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        self._log, self._close = log_scalars, writer.close


class WandB(_Tracker):
    """Sends every number of every round to Weights & Biases.

    Parameters
    ----------
    project : str
        The project.
    settings : Mapping[str, object] | None
        The run's settings, to be shown there.
    folder : RunFolder | None
        The run's folder, which keeps the id there, so that a run that goes on does so there as well.
    options : Mapping[str, object] | None
        More arguments of ``wandb.init``.
    """

    def __init__(
        self,
        project: str,
        *,
        settings: Mapping[str, object] | None = None,
        folder: RunFolder | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self._module, self._folder = _load("wandb"), folder
        self._arguments = {"project": project, "config": flatten(settings or {}), **(options or {})}

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Open the run there."""
        known = _known_id("wandb", self._folder)
        run = self._module.init(**self._arguments, **({"id": known, "resume": "allow"} if known else {}))
        if self._folder:
            self._folder.note(wandb=run.id)
        self._log, self._close = run.log, run.finish


class MLflow(_Tracker):
    """Sends every number of every round to MLflow.

    Parameters
    ----------
    experiment : str
        The experiment.
    tracking_uri : str | None
        The server or folder; by default MLflow's own choice.
    settings : Mapping[str, object] | None
        The run's settings, to be shown there.
    folder : RunFolder | None
        As for ``WandB``.
    options : Mapping[str, object] | None
        More arguments of ``mlflow.start_run``, such as a ``run_name``.
    """

    def __init__(
        self,
        experiment: str,
        *,
        tracking_uri: str | None = None,
        settings: Mapping[str, object] | None = None,
        folder: RunFolder | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self._module, self._folder = _load("mlflow"), folder
        self._experiment, self._tracking_uri = experiment, tracking_uri
        self._settings, self._options = flatten(settings or {}), dict(options or {})

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Open the run there."""
        if self._tracking_uri:
            self._module.set_tracking_uri(self._tracking_uri)
        self._module.set_experiment(self._experiment)
        known = _known_id("mlflow", self._folder)
        run = self._module.start_run(**self._options, **({"run_id": known} if known else {}))
        if self._folder:
            self._folder.note(mlflow=run.info.run_id)
        if not known:  # a run that goes on has its parameters, and MLflow lets no one change them
            self._module.log_params(self._settings)
        self._log, self._close = self._module.log_metrics, self._module.end_run


def _known_id(service: str, folder: RunFolder | None) -> str | None:
    """Return the id that a run has at a service, if it has been there before."""
    return folder.about().get(service) if folder else None


def _load(name: str) -> Any:
    with extra(name):
        return import_module(name)
