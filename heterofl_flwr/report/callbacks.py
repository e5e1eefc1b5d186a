"""Callbacks for experiment trackers: TensorBoard, Weights & Biases and MLflow."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

from heterofl_flwr.common.errors import HeteroFLError, extra, first_line, short
from heterofl_flwr.federation.callbacks import Progress, RoundCallback
from heterofl_flwr.federation.round_record import State
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.metrics import scalars
from heterofl_flwr.settings.validate import flatten

log = logging.getLogger(__name__)


class _Tracker(RoundCallback):
    """Base class of callbacks for trackers; an error of the tracker becomes a warning."""

    _log: Callable[..., object] | None = None
    _close: Callable[..., object] | None = None
    _failed: ClassVar[Mapping[str, object]] = {}
    """Arguments of ``_close`` after an error of the run."""

    @abstractmethod
    def _connect(self, first_round: int) -> None:
        """Open the tracker's run, and set ``_log`` and ``_close``."""

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        with self._warning("did not open, and gets no round"):
            self._connect(first_round)

    def on_round_end(self, progress: Progress) -> bool:
        server_round = progress.record.server_round
        with self._warning(f"took nothing of round {server_round}"):
            if self._log is not None:
                self._log(scalars(progress.record), step=server_round)
        return False

    def on_end(self, state: State) -> None:
        self._end()

    def on_error(self) -> None:
        self._end(**self._failed)

    def _end(self, **status: object) -> None:
        with self._warning("did not close"):
            if self._close is not None:
                self._close(**status)

    @contextmanager
    def _warning(self, event: str) -> Iterator[None]:
        try:
            yield
        except HeteroFLError:  # such as a missing package
            raise
        except Exception as error:
            log.warning("%s %s: %s", type(self).__name__, event, short(first_line(error)))


class TensorBoard(_Tracker):
    """Callback that writes all numbers of each round into the run's ``events`` folder.

    If a resumed run repeats rounds, TensorBoard hides their earlier values.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def _connect(self, first_round: int) -> None:
        with extra("report", "leave tensorboard out of run.callbacks"):  # not at the top: it may load TensorFlow
            from torch.utils.tensorboard import SummaryWriter

        # purge_step hides events of repeated rounds, also if a run without a checkpoint starts at round 1 again.
        writer = SummaryWriter(str(self._folder.events), purge_step=first_round)

        def log_scalars(numbers: Mapping[str, float], step: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        self._log, self._close = log_scalars, writer.close


class _Service(_Tracker):
    """Base class of callbacks for trackers that give each run an id."""

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

    def _connect(self, first_round: int) -> None:
        run_id = self._open(self._folder.about().get(self._name) if self._folder else None)
        if self._folder:
            self._folder.note(**{self._name: run_id})

    @abstractmethod
    def _open(self, earlier_id: str | None) -> str:
        """Continue the run with the id ``earlier_id``, or open a new run if it is None; return the run's id."""


class WandB(_Service):
    """Callback that sends all numbers of each round to Weights & Biases.

    Parameters
    ----------
    project : str
        Name of the project.
    settings : Mapping[str, object] | None
        The run's settings, shown as the configuration of the run.
    folder : RunFolder | None
        The run's folder. It stores the service's id of the run, so that a resumed run keeps this id.
    options : object
        More arguments of ``wandb.init``.
    """

    _name = "wandb"
    _failed: ClassVar[Mapping[str, object]] = {"exit_code": 1}

    def _open(self, earlier_id: str | None) -> str:
        resumed = {"id": earlier_id, "resume": "allow"} if earlier_id else {}
        run = self._module.init(project=self._project, config=self._settings, **self._options, **resumed)
        self._log, self._close = run.log, run.finish
        return str(run.id)


class MLflow(_Service):
    """Callback that sends all numbers of each round to MLflow.

    The environment variable ``MLFLOW_TRACKING_URI`` names MLflow's server or folder.

    Parameters
    ----------
    project : str
        Name of the experiment.
    settings, folder
        As for ``WandB``.
    options : object
        More arguments of ``mlflow.start_run``, such as a ``run_name``.
    """

    _name = "mlflow"
    _failed: ClassVar[Mapping[str, object]] = {"status": "FAILED"}

    def _open(self, earlier_id: str | None) -> str:
        self._module.set_experiment(self._project)
        run = self._module.start_run(**self._options, **({"run_id": earlier_id} if earlier_id else {}))
        self._close = self._module.end_run  # set now, because log_params may fail, such as for long values
        if not earlier_id:  # MLflow does not allow changed parameters of a run
            self._module.log_params(self._settings)
        self._log = self._module.log_metrics
        return str(run.info.run_id)
