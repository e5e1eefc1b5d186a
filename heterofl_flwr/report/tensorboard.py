"""Curves for TensorBoard."""

from typing import TYPE_CHECKING

from heterofl_flwr.methods.callbacks import Progress, RoundCallback, State
from heterofl_flwr.report.metrics import scalars
from heterofl_flwr.report.run_folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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
