"""The messages that the server sends: instructions with slices, and questions of stages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from heterofl_flwr.common.errors import Fault, RoundError, name_faults
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.stages.client_stage import Fields
from heterofl_flwr.stages.conversation import Questions
from heterofl_flwr.strategies.arrivals import ask
from heterofl_flwr.transport import messages, packing

Result = TypeVar("Result")


class Slices:
    """The slices of a global state as records: one for each plan, shared by its messages.

    Flower keeps, and in a deployment uploads, equal objects once. The whole model's record is the one that came.
    """

    def __init__(self, federation: Federation, arrays: ArrayRecord) -> None:
        self.state = federation.check_state(packing.read_tensors(arrays))
        # A user's state may hold running statistics too.
        is_whole = list(arrays) == list(federation.whole.axes)
        self._records = {federation.whole: arrays} if is_whole else {}
        self._broadcasts: dict[Plan, ArrayRecord] = {}

    def record(self, plan: Plan) -> ArrayRecord:
        """Return the record of a slice."""
        if plan not in self._records:
            self._records[plan] = ArrayRecord(plan.extract(self.state))
        return self._records[plan]

    def broadcast(self, plan: Plan, tensors: Mapping[str, Tensor]) -> ArrayRecord:
        """Return the record of a slice of the stages' tensors, named ``stage/parameter``."""
        if plan not in self._broadcasts:
            parameters = {name: name.partition("/")[2] for name in tensors}
            axes = {name: plan.axes[parameter] for name, parameter in parameters.items() if parameter in plan.axes}
            self._broadcasts[plan] = ArrayRecord(Plan(axes).extract(tensors))
        return self._broadcasts[plan]


def instruction(kind: str, node_id: int, arrays: ArrayRecord, config: Mapping[str, object]) -> Message:
    """Return a message with a config of its own."""
    return Message(RecordDict({messages.ARRAYS: arrays, messages.CONFIG: messages.new_config(config)}), node_id, kind)


def client_config(
    federation: Federation, server_round: int, node_id: int, rate: float, checkpoint_every: int = 1
) -> dict[str, object]:
    """Return what every client needs to know of its task."""
    transfer = federation.options.transfer
    config: dict[str, object] = {
        messages.RATE: rate,
        messages.GLOBAL_RATE: federation.mix.global_rate,
        messages.SERVER_ROUND: server_round,
        messages.SEED: federation.seed,
        messages.PARTITION: federation.nodes.partition(node_id),
    }
    if base := federation.base(rate):
        config[messages.BASE] = base
    if federation.personal:
        config[messages.SHARED] = list(federation.shared) or [""]  # a config knows no empty list
    if federation.clients_keep:
        config[messages.TRAINED] = node_id in federation.nodes.trained
        config[messages.RUN_KEY] = federation.run_key
        config[messages.CHECKPOINT_EVERY] = checkpoint_every
    if transfer.learning_rate is not None:
        config[messages.LEARNING_RATE] = federation.learning_rate(server_round)
    if transfer.proximal_mu is not None:
        config[messages.PROXIMAL_MU] = float(transfer.proximal_mu)
    return config


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks clients what stages want to know beside training; ``faults`` says why some do not tell."""

    grid: Grid
    server_round: int
    beside: Mapping[str, object]  # what instructions say of the stages
    seconds: Callable[[], float]  # that a turn may take
    faults: dict[int, Fault] = field(default_factory=dict)

    def converse(self, talk: Questions[Result]) -> Result:
        """Ask turn by turn; return what comes of it. An error that ends the round names the faults."""
        try:
            asked = next(talk)
            while True:
                asked = talk.send(self._ask(asked))
        except StopIteration as end:
            found: Result = end.value
            return found
        except RoundError as error:
            named = {node_id: fault.reason for node_id, fault in self.faults.items()}
            raise RoundError(f"{error}; {name_faults('node', named)}" if named else str(error)) from error

    def _ask(self, asked: Mapping[int, Fields]) -> dict[int, Fields]:
        full = {own: {**self.beside, messages.SERVER_ROUND: self.server_round, **said} for own, said in asked.items()}
        answers: dict[int, Fields] = {}
        found = ask(self.grid, messages.QUERY_STAGES, full, self.seconds(), messages.read_config)
        for node_id, answer in found.items():
            if isinstance(answer, Fault):
                self.faults[node_id] = answer
            else:
                answers[node_id] = answer
        return answers
