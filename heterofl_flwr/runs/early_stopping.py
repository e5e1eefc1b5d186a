"""The callback that ends a run when nothing gets better any more."""

import logging
from collections.abc import Sequence

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.records import Progress, RoundCallback, RoundRecord, State
from heterofl_flwr.runs.metrics import headline, is_better, mode_of

log = logging.getLogger(__name__)


class EarlyStopping(RoundCallback):
    """Stops after ``patience`` evaluations in a row without a new best value, or when ``target`` is reached.

    Parameters
    ----------
    metric : str | None
        A metric of evaluation, such as ``global-accuracy``; by default that by which ``Recorder`` chooses the best
        round: of a text the perplexity, else the accuracy, else the loss of the global model.
    patience : int | None
        Evaluations without a new best value; None for a target alone.
    mode : str | None
        ``max`` or ``min``; by default ``min`` for losses and perplexities, ``max`` for everything else.
    target : float | None
        A value that is good enough.
    history : Sequence[RoundRecord]
        The records so far, for a run that goes on: it then stops where an uninterrupted one would. Records of rounds
        that are run again do not count.
    """

    def __init__(
        self,
        metric: str | None = None,
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
        self._metric, self._patience, self._target = metric or None, patience, target
        self._mode, self._history = mode, history
        self._followed = self._metric
        self._best: float | None = None
        self._waited, self._warned = 0, False

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Count the evaluations before the first round."""
        self._best, self._waited, self._followed = None, 0, self._metric
        for record in self._history:
            if record.server_round < first_round:
                self._stops_after(record)

    def on_round_end(self, progress: Progress) -> bool:
        """Return whether the run must stop."""
        return self._stops_after(progress.record)

    def _stops_after(self, record: RoundRecord) -> bool:
        self._followed = self._followed or headline(record)
        name, target = self._followed or "", self._target
        if name not in record.evaluate and record.evaluate and not self._warned:
            wanted = name or "a perplexity, an accuracy or a loss"
            log.warning("early stopping waits for %s; evaluation gives %s", wanted, ", ".join(record.evaluate))
            self._warned = True
        value = record.comparable.get(name)
        if value is None:
            return False  # or it is from so few clients that it is neither a gain nor a lack of one
        mode = self._mode or mode_of(name)
        if is_better(value, self._best, mode):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        reached = target is not None and (value == target or is_better(value, target, mode))
        return reached or (self._patience is not None and self._waited >= self._patience)
