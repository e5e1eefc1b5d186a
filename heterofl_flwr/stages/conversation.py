"""Stages that query clients before and after training."""

from abc import abstractmethod
from collections.abc import Generator, Mapping
from typing import TypeVar

from torch import Tensor

from heterofl_flwr.core.aggregator import Aggregator
from heterofl_flwr.stages.client_stage import Fields
from heterofl_flwr.stages.server_stage import RoundContext, ServerStage, Update

Result = TypeVar("Result")

Questions = Generator[Mapping[int, Fields], Mapping[int, Fields], Result]
"""Generator that yields questions by client, receives the answers by client, and returns a result."""


class Conversation(ServerStage):
    """A server stage that queries clients, and sums their replies itself.

    Attributes
    ----------
    excluded
        Reasons why the stage has excluded clients, by client id.
    skipped
        Whether the stage leaves the model unchanged in this round.
    fewest_replies
        Minimum number of replies; with fewer, the stage leaves the model unchanged.
    config_bytes
        Upper bound on the bytes that the stage adds to the config of a reply.
    """

    excluded: Mapping[int, str] = {}
    skipped = False
    fewest_replies = 0
    config_bytes = 0

    @abstractmethod
    def before(self, clients: Mapping[int, Update], context: RoundContext) -> Questions[Mapping[int, Fields]]:
        """Yield queries before training; return extra config entries for each client.

        ``clients`` has the plan and rate of each client, in an ``Update`` without tensors.
        """

    @abstractmethod
    def after(self, context: RoundContext) -> Questions[None]:
        """Yield further queries to clients, after the last reply of the round has come."""

    @abstractmethod
    def open_aggregator(self, state: Mapping[str, Tensor]) -> Aggregator:
        """Return an aggregator that computes the mean from this stage's sum."""
