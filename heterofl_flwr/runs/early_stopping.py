"""The callback that ends a run when nothing gets better any more."""

import logging
from collections.abc import Sequence

from heterofl_flwr.errors import check_count
from heterofl_flwr.federation.records import Progress, RoundCallback, RoundRecord, State
from heterofl_flwr.runs.metrics import headline, is_better, mode_of

log = logging.getLogger(__name__)


class EarlyStopping(RoundCallback):
    """Stops after ``patience`` evaluations in a row without a new best value.

    Parameters
    ----------
    metric : str | None
        A metric of evaluation, such as ``local-accuracy``; by default of a text the perplexity, else the accuracy, else
        the loss of the global model. Losses and perplexities are better where they are lower.
    patience : int
        Evaluations without a new best value.
    history : Sequence[RoundRecord]
        The records so far, for a run that goes on: it then stops where an uninterrupted one would. Records of rounds
        that are run again do not count.
    """

    def __init__(self, metric: str | None = None, patience: int = 10, *, history: Sequence[RoundRecord] = ()) -> None:
        check_count("patience", patience, 1)
        self._metric, self._patience, self._history = metric, patience, history
        self._followed: str | None = None
        self._best: float | None = None
        self._waited, self._warned = 0, False

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Count the evaluations before the first round."""
        self._best, self._waited, self._followed = None, 0, self._metric or None
        for record in self._history:
            if record.server_round < first_round:
                self._stops_after(record)

    def on_round_end(self, progress: Progress) -> bool:
        """Return whether the run must stop."""
        return self._stops_after(progress.record)

    def _stops_after(self, record: RoundRecord) -> bool:
        self._followed = self._followed or headline(record)
        name = self._followed or ""
        if name not in record.evaluate and record.evaluate and not self._warned:
            wanted = name or "a perplexity, an accuracy or a loss"
            log.warning("early stopping waits for %s; evaluation gives %s", wanted, ", ".join(record.evaluate))
            self._warned = True
        value = record.comparable.get(name)
        if value is None:
            return False  # or it is from so few clients that it is neither a gain nor a lack of one
        if is_better(value, self._best, mode_of(name)):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        return self._waited >= self._patience
