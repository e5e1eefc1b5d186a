"""Stages that ask clients before and after training and sum their replies: secure aggregation."""

from collections.abc import Generator, Mapping
from typing import TypeVar

from torch import Tensor

from heterofl_flwr.core.aggregator import Aggregator
from heterofl_flwr.stages.client_stage import Fields
from heterofl_flwr.stages.server_stage import RoundContext, ServerStage, Update, stage_name

Result = TypeVar("Result")

Questions = Generator[Mapping[int, Fields], Mapping[int, Fields], Result]
"""Generator that yields questions by client and receives the answers by client."""


class Conversation(ServerStage):
    """A server stage that asks clients several questions; its client half is a ``RespondingStage``.

    Other stages do not see single replies.

    Attributes
    ----------
    excluded
        Ids of clients that the stage excludes or that lied to it, each with the reason.
    skipped
        True if the model does not change in this round.
    """

    excluded: Mapping[int, str] = {}
    skipped = False

    def before(self, clients: Mapping[int, Update], context: RoundContext) -> Questions[Mapping[int, Fields]]:
        """Yield queries to clients before training, and receive the answers.

        The generator returns extra fields of the instruction for each client that may train. The updates in ``clients``
        have no tensors yet.
        """
        yield from ()
        return {client: {} for client in clients}

    def after(self, context: RoundContext) -> Questions[None]:
        """Yield queries to clients after all replies have been added, before the mean is computed."""
        yield from ()

    def open_aggregator(self, state: Mapping[str, Tensor]) -> Aggregator:
        """Return an aggregator that uses this stage's sum, for a round that starts with this state."""
        raise NotImplementedError(f"{stage_name(self)} has no aggregator")
