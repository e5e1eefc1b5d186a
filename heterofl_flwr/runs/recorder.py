"""``Recorder``, the callback that writes a run to disk."""

from datetime import datetime
from pathlib import Path
from time import monotonic

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Interval, is_interval
from heterofl_flwr.federation.callbacks import Progress, RoundCallback
from heterofl_flwr.federation.round_record import State
from heterofl_flwr.runs.costs import Costs
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.models import check_shapes, holds_model, save_models
from heterofl_flwr.transport.arrays import moments_by_rate


class Recorder(RoundCallback):
    """Callback that writes the folder of a run while the run goes on.

    The folder is locked until the end of the run. A resumed run first removes the files of rounds after its checkpoint.
    If a finished run goes on, its final models are removed at the end of the next round, because they are outdated.

    Parameters
    ----------
    folder : RunFolder | str | Path
        Folder of the run. A folder without settings gets empty settings.
    every : int | str
        Rounds between checkpoints, or seconds such as ``"30s"``. The final round always has a checkpoint.
    costs : Costs | None
        Measures the costs of the models. Without it, no final models are written, and the report shows no savings.
        If clients keep layers, no final models are written either, because the server has no whole model. If the final
        round is not evaluated, the models have neither metrics nor batch norm moments.
    """

    def __init__(self, folder: RunFolder | str | Path, every: Interval = 1, *, costs: Costs | None = None) -> None:
        if not is_interval(every):
            raise ConfigError(f"every is {every!r}; expected rounds such as 10, or seconds such as '30s'")
        self.folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        self._every, self._costs = every, costs
        self._progress: Progress | None = None
        self._saved_rounds, self._saved_at = (0, 0), monotonic()  # rounds of the newest two checkpoints; time of saving

    @property
    def oldest_checkpoint(self) -> int:  # type: ignore[override]
        """Round of the checkpoint before the newest; 0 until two checkpoints have been loaded or saved."""
        return self._saved_rounds[0]

    def on_resume(self, progress: Progress) -> None:
        """Store ``progress`` for ``on_end``, in case no round is left."""
        self._progress = progress

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Prepare the folder for rounds from ``first_round`` on, and write the models' costs.

        Raise ``ConfigError`` if ``costs`` has another global model than the run.
        """
        if self._costs:
            check_shapes(self._costs.build, self._costs.mix.global_rate, state)
        if not self.folder.started:
            self.folder.start({})
        self.folder.hold()
        if first_round > 1:
            self._resume(first_round)
        records = self.folder.history()
        if first_round == 1 and records:
            raise ConfigError(
                f"{self.folder.path} holds rounds up to {records[-1].server_round} already: "
                f"resume the run, or choose another folder"
            )
        if self._costs:
            self._costs.add([rate for record in records for rate in record.rates.values()])
            self.folder.write_costs(self._costs.model())
        self.folder.note(num_rounds=num_rounds, finished=None)

    def _resume(self, first_round: int) -> None:
        checkpoint = self.folder.load_checkpoint()
        self._saved_rounds = 0, checkpoint.server_round
        if checkpoint.server_round != first_round - 1:
            raise ConfigError(
                f"the checkpoint in {self.folder.path} is of round {checkpoint.server_round}, "
                f"so the run goes on with the next one, not with round {first_round}"
            )
        self.folder.rewind(checkpoint.server_round)

    def on_round_end(self, progress: Progress) -> bool:
        """Write the round's record, and a checkpoint if one is due."""
        self.folder.append(progress.record)
        self.folder.drop_models()
        record, self._progress = progress.record, progress
        if self._costs and self._costs.add(tuple(record.rates.values())):
            self.folder.write_costs(self._costs.model())
        if isinstance(self._every, int):
            is_due = record.server_round % self._every == 0
        else:
            is_due = monotonic() >= self._saved_at + int(self._every.removesuffix("s"))
        if is_due:
            self._save(progress)
        return False

    def on_end(self, state: State) -> None:
        """Write the final checkpoint and the final models, and unlock the folder."""
        if self._progress and self._progress.server_round != self._saved_rounds[1]:
            self._save(self._progress)
        if self._costs and self._progress and holds_model(self._costs.build, self._costs.mix.global_rate, state):
            rates, progress, record = self._costs.mix.all_rates, self._progress, self.folder.history()[-1]
            # Moments of an earlier round are of other parameters, whose channels may have had another order.
            evaluated = record if record.evaluate or record.evaluate_by_level else None
            save_models(
                self.folder,
                self._costs.build,
                rates,
                state,
                moments=moments_by_rate(progress.moments) if evaluated else {},
                slices={rate: progress.evaluated_slice(record.server_round, rate) for rate in rates},
                levels={rate: progress.level_tensors(rate) for rate in rates},
                record=evaluated,
            )
        self.folder.note(finished=datetime.now().astimezone().isoformat(timespec="seconds"))
        self.folder.unlock()

    def on_error(self) -> None:
        """Unlock the folder."""
        self.folder.unlock()

    def _save(self, progress: Progress) -> None:
        self.folder.save_checkpoint(progress)
        self._saved_rounds, self._saved_at = (self._saved_rounds[1], progress.record.server_round), monotonic()
