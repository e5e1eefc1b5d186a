"""Stages that query clients before and after training, and that sum the replies themselves: secure aggregation."""

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
    """A server stage that queries clients several times in a round. Its client half is a ``RespondingStage``.

    Replies are passed to this stage only. Other stages see only the mean of the replies.

    Attributes
    ----------
    excluded
        Dictionary from client to reason, for clients that the stage has left out, or that lied to it.
    skipped
        True if the stage leaves the model unchanged in this round.
    """

    excluded: Mapping[int, str] = {}
    skipped = False

    def before(self, clients: Mapping[int, Update], context: RoundContext) -> Questions[Mapping[int, Fields]]:
        """Yield queries to clients before training, and receive the answers.

        ``clients`` has the expected update of each client, without tensors. The generator returns extra config entries
        for the instruction of each client that may train.
        """
        yield from ()
        return {client: {} for client in clients}

    def after(self, context: RoundContext) -> Questions[None]:
        """Yield queries to clients and receive the answers, between the last reply of the round and the mean."""
        yield from ()

    def open_aggregator(self, state: Mapping[str, Tensor]) -> Aggregator:
        """Return an aggregator that computes the mean from this stage's sum.

        ``state`` is the model before the round.
        """
        raise NotImplementedError(f"{stage_name(self)} has no aggregator")
