"""Curves for experiment trackers, which are installed on demand."""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.records import Progress, RoundCallback, State
from heterofl_flwr.runs.folder import RunFolder, flatten
from heterofl_flwr.runs.metrics import scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class WandB(RoundCallback):
    """Sends every number of every round to Weights & Biases.

    Parameters
    ----------
    project : str
        The project.
    settings : Mapping[str, object] | None
        The run's settings, to be shown there.
    run_id : str | None
        An id of your choice; a run that goes on under the same id goes on there as well.
    options : Mapping[str, object] | None
        More arguments of ``wandb.init``.
    """

    def __init__(
        self,
        project: str,
        *,
        settings: Mapping[str, object] | None = None,
        run_id: str | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self._module = _load("wandb", "wandb")
        self._arguments = {"project": project, "config": flatten(settings or {}), **(options or {})}
        if run_id:
            self._arguments |= {"id": run_id, "resume": "allow"}
        self._run: Any = None

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Open the run there."""
        self._run = self._module.init(**self._arguments)

    def on_round_end(self, progress: Progress) -> bool:
        """Send one round."""
        self._run.log(scalars(progress.record), step=progress.record.server_round)
        return False

    def on_end(self, state: State) -> None:
        """Close the run there."""
        self._run.finish()


class MLflow(RoundCallback):
    """Sends every number of every round to MLflow.

    Parameters
    ----------
    experiment : str
        The experiment.
    tracking_uri : str | None
        The server or folder; by default MLflow's own choice.
    settings : Mapping[str, object] | None
        The run's settings, to be shown there.
    options : Mapping[str, object] | None
        More arguments of ``mlflow.start_run``: a ``run_name``, or the ``run_id`` of a run that goes on.
    """

    def __init__(
        self,
        experiment: str,
        *,
        tracking_uri: str | None = None,
        settings: Mapping[str, object] | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self._module = _load("mlflow", "mlflow")
        self._experiment, self._tracking_uri = experiment, tracking_uri
        self._settings = flatten(settings or {})
        self._options = dict(options or {})

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Open the run there."""
        if self._tracking_uri:
            self._module.set_tracking_uri(self._tracking_uri)
        self._module.set_experiment(self._experiment)
        self._module.start_run(**self._options)
        if first_round == 1:  # a run that goes on has its parameters, and MLflow lets no one change them
            self._module.log_params(self._settings)

    def on_round_end(self, progress: Progress) -> bool:
        """Send one round."""
        self._module.log_metrics(scalars(progress.record), step=progress.record.server_round)
        return False

    def on_end(self, state: State) -> None:
        """Close the run there."""
        self._module.end_run()


def _load(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed: pip install 'heterofl-flwr[{extra}]'") from error


class TensorBoard(RoundCallback):
    """Writes every number of every round into the run's ``events`` folder.

    When a run goes on from a checkpoint, TensorBoard is told to forget the rounds that are run again.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Open a new file of events."""
        from torch.utils.tensorboard import SummaryWriter  # here, as it is slow and may load TensorFlow

        purge = first_round if first_round > 1 else None
        self._writer = SummaryWriter(str(self._folder.events), purge_step=purge)

    def on_round_end(self, progress: Progress) -> bool:
        """Write one round."""
        if self._writer:
            for name, value in scalars(progress.record).items():
                self._writer.add_scalar(name, value, progress.record.server_round)
            self._writer.flush()
        return False

    def on_end(self, state: State) -> None:
        """Close the file."""
        if self._writer:
            self._writer.close()
