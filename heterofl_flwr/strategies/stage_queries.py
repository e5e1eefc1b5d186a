"""Queries that stages send to clients before and after training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import Fault, RoundError, name_faults
from heterofl_flwr.federation.nodes import Nodes
from heterofl_flwr.stages.client_stage import Fields
from heterofl_flwr.stages.conversation import Questions
from heterofl_flwr.strategies.round_messages import query
from heterofl_flwr.transport import messages, reading

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StageQueries:
    """Sender of the queries of stages.

    ``faults`` has the reason for each client whose answer was missing or unusable.
    """

    grid: Grid
    nodes: Nodes
    server_round: int
    config: Mapping[str, object]  # config entries with the client stages
    seconds: Callable[[], float]  # time limit of the next query
    faults: dict[int, Fault] = field(default_factory=dict)

    def converse(self, talk: Questions[Result]) -> Result:
        """Run a stage's generator: send the queries that it yields; return the result of the generator."""
        try:
            questions = next(talk)
            while True:
                questions = talk.send(self._query(questions))
        except StopIteration as end:
            result: Result = end.value
            return result
        except RoundError as error:
            faults = {self.nodes.name(node_id): fault.reason for node_id, fault in self.faults.items()}
            raise RoundError(f"{error}; {name_faults('', faults)}" if faults else str(error)) from error

    def _query(self, questions: Mapping[int, Fields]) -> dict[int, Fields]:
        common = {**self.config, messages.SERVER_ROUND: self.server_round}
        configs = {node_id: {**common, **question} for node_id, question in questions.items()}
        answers: dict[int, Fields] = {}

        def read(node_id: int, reply: Message) -> Fields:
            return reading.read_config(reply, self.nodes.name(node_id))

        results = query(self.grid, messages.QUERY_STAGES, configs, self.seconds(), read)
        for node_id, result in results.items():
            if isinstance(result, Fault):
                self.faults[node_id] = result
            else:
                answers[node_id] = result
        return answers
