"""A stage that asks clients before and after training, and sums their replies itself: secure aggregation."""

from collections.abc import Generator, Mapping
from typing import TypeVar

from torch import Tensor

from heterofl_flwr.core.aggregator import Aggregator
from heterofl_flwr.stages.client_stage import Fields
from heterofl_flwr.stages.server_stage import RoundContext, ServerStage, Update, stage_name

Result = TypeVar("Result")

Questions = Generator[Mapping[int, Fields], Mapping[int, Fields], Result]
"""Generator that yields questions per client and receives their answers."""


class Conversation(ServerStage):
    """A server stage that asks clients in several turns; its client half is a ``RespondingStage``.

    Other stages see none of the single replies.

    Attributes
    ----------
    excluded
        Clients that the stage left out of this round, or named as liars, with the reason.
    skipped
        True if the stage does not change the model in this round.
    """

    excluded: Mapping[int, str] = {}
    skipped = False

    def before(self, clients: Mapping[int, Update], context: RoundContext) -> Questions[Mapping[int, Fields]]:
        """Query clients before training; return for each that may train the extra fields of its instruction.

        The updates have no tensors yet.
        """
        del context
        yield from ()
        return {client: {} for client in clients}

    def after(self, context: RoundContext) -> Questions[None]:
        """Ask clients after all replies were added, before the mean is taken."""
        del context
        yield from ()

    def open_aggregator(self, state: Mapping[str, Tensor]) -> Aggregator:
        """Return the aggregator of the replies, which this stage sums, for a round that begins with this state."""
        raise NotImplementedError(f"{stage_name(self)} has no aggregator")
