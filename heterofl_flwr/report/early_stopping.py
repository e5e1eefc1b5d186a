"""Stop a run that no longer gains, or that has reached its aim."""

import logging
from collections.abc import Sequence

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.records import Progress, RoundCallback, RoundRecord, State
from heterofl_flwr.runs.history import before
from heterofl_flwr.runs.metrics import is_better, mode_of

log = logging.getLogger(__name__)


class EarlyStopping(RoundCallback):
    """Stops after ``patience`` evaluations in a row without a new best value, or when ``target`` is reached.

    Parameters
    ----------
    metric : str
        A metric of evaluation, such as ``global-accuracy``.
    patience : int | None
        Evaluations without a new best value; None for a target alone.
    mode : str | None
        ``max`` or ``min``; by default ``min`` for losses and perplexities, ``max`` for all else.
    target : float | None
        A value that is good enough.
    history : Sequence[RoundRecord]
        The records so far, for a run that goes on: it then stops where an uninterrupted one would. Records of rounds
        that are run again do not count.
    """

    def __init__(
        self,
        metric: str = "global-accuracy",
        patience: int | None = 10,
        mode: str | None = None,
        target: float | None = None,
        *,
        history: Sequence[RoundRecord] = (),
    ) -> None:
        if mode not in ("max", "min", None):
            raise ConfigError(f"early stopping: mode is {mode!r}; expected max or min")
        if patience is None and target is None:
            raise ConfigError("early stopping needs a patience or a target")
        if patience is not None and patience < 1:
            raise ConfigError(f"early stopping: a patience of {patience} is not usable; expected 1 or more")
        self._metric, self._patience, self._target = metric, patience, target
        self._mode = mode or mode_of(metric)
        self._history = history
        self._best: float | None = None
        self._waited = 0
        self._warned = False

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Recall the rounds before the first."""
        self._best, self._waited = None, 0
        for record in before(self._history, first_round):
            self._done(record)

    def on_round_end(self, progress: Progress) -> bool:
        """Return whether the run is to stop."""
        return self._done(progress.record)

    def _done(self, record: RoundRecord) -> bool:
        value = record.comparable.get(self._metric)
        if self._metric in record.partial:
            return False  # of so few clients, it is neither a gain nor a lack of one
        if value is None:
            if record.evaluate and not self._warned:
                log.warning(
                    "early stopping waits for %s; evaluation gives %s", self._metric, ", ".join(record.evaluate)
                )
                self._warned = True
            return False
        if is_better(value, self._best, self._mode):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        reached = self._target is not None and (value == self._target or is_better(value, self._target, self._mode))
        return reached or (self._patience is not None and self._waited >= self._patience)
