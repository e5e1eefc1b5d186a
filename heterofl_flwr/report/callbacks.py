"""Callbacks that send curves to experiment trackers, which are installed on demand."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar

from heterofl_flwr.common.errors import extra, first_line, short
from heterofl_flwr.federation.records import Progress, RoundCallback, State
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.metrics import scalars
from heterofl_flwr.settings.flat import flatten

log = logging.getLogger(__name__)


class _Tracker(RoundCallback):
    """Sends every number of every round to what ``on_start`` opens and puts into ``_log`` and ``_close``."""

    _log: Callable[..., object]
    _close: Callable[[], object]

    def on_round_end(self, progress: Progress) -> bool:
        """Send one round."""
        server_round = progress.record.server_round
        try:
            self._log(scalars(progress.record), step=server_round)
        except Exception as error:  # a tracker's own, such as a metric name that it does not take
            log.warning("%s took nothing of round %d: %s", type(self).__name__, server_round, short(first_line(error)))
        return False

    def on_end(self, state: State) -> None:
        """Close the run there."""
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


class _Service(_Tracker):
    """A tracker at a service, whose package is installed on demand."""

    _name: ClassVar[str]

    def __init__(
        self,
        project: str,
        *,
        settings: Mapping[str, object] | None = None,
        folder: RunFolder | None = None,
        **options: object,
    ) -> None:
        with extra(self._name):
            self._module: Any = import_module(self._name)
        self._project, self._settings, self._folder = project, flatten(settings or {}), folder
        self._options = options

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Open the run there, and keep its id there."""
        run_id = self._open(self._folder.about().get(self._name) if self._folder else None)
        if self._folder:
            self._folder.note(**{self._name: run_id})

    @abstractmethod
    def _open(self, known: str | None) -> str:
        """Open the run there, which may have an id from before; return its id."""


class WandB(_Service):
    """Sends every number of every round to Weights & Biases.

    Parameters
    ----------
    project : str
        The project.
    settings : Mapping[str, object] | None
        The run's settings, to be shown there.
    folder : RunFolder | None
        The run's folder, which keeps the id there, so that a run that goes on does so there as well.
    options : object
        More arguments of ``wandb.init``.
    """

    _name = "wandb"

    def _open(self, known: str | None) -> str:
        goes_on = {"id": known, "resume": "allow"} if known else {}
        run = self._module.init(project=self._project, config=self._settings, **self._options, **goes_on)
        self._log, self._close = run.log, run.finish
        return str(run.id)


class MLflow(_Service):
    """Sends every number of every round to MLflow, to the server or folder that ``MLFLOW_TRACKING_URI`` names.

    Parameters
    ----------
    project : str
        The experiment.
    settings, folder
        As for ``WandB``.
    options : object
        More arguments of ``mlflow.start_run``, such as a ``run_name``.
    """

    _name = "mlflow"

    def _open(self, known: str | None) -> str:
        self._module.set_experiment(self._project)
        run = self._module.start_run(**self._options, **({"run_id": known} if known else {}))
        if not known:  # a run that goes on has its parameters, and MLflow lets no one change them
            self._module.log_params(self._settings)
        self._log, self._close = self._module.log_metrics, self._module.end_run
        return str(run.info.run_id)
