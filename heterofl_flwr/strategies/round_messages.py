"""Messages of a round: instructions with slices, queries of stages, replies, and the time limit of all of them."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, Fault, RoundError, name_faults
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.federation.callbacks import RoundCallback
from heterofl_flwr.federation.evaluation_round import EvaluationRound
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.nodes import Nodes
from heterofl_flwr.federation.round import Round
from heterofl_flwr.stages.client_stage import Fields, State
from heterofl_flwr.stages.conversation import Questions
from heterofl_flwr.transport import messages, packing
from heterofl_flwr.transport.exchange import query, read_each, reply_or_fault
from heterofl_flwr.transport.tensor_array import pack_tensors

TRAIN_SHARE = 0.8
"""Fraction of a round's time for training, if an evaluation or queries of stages follow."""

MOMENTS_SHARE = 0.5
"""Fraction of the remaining time of a round for moments; the rest is for the evaluation."""

STAGES_SHARE = 0.25
"""Fraction of the remaining time of a round for each query of stages before training."""

Result = TypeVar("Result")


class Budget:
    """Time limit of a round that all its exchanges share, so that a slow client cannot delay each of them."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def extend(self, seconds: float) -> None:
        """Move the deadline by ``seconds`` that do not count."""
        self._deadline += seconds

    def remaining(self, share: float = 1.0) -> float:
        """Return the remaining seconds times ``share``; 0 after the deadline."""
        return share * max(0.0, self._deadline - time.monotonic())


class Replies(Iterator[Message]):
    """Iterator over the replies of an exchange. It does not store replies, so they can be read once."""

    def __init__(self, replies: Iterator[Message]) -> None:
        self._replies, self.are_read = replies, False

    def __next__(self) -> Message:
        """Return the next reply."""
        try:
            return next(self._replies)
        except StopIteration:
            self.are_read = True
            raise

    def __len__(self) -> int:
        """Raise ``TypeError``: the number of replies is not known before all are read."""
        raise TypeError("replies come one by one and have no length: expected replies = list(replies) first")


class RoundMessages:
    """The messages of one server round.

    Attributes
    ----------
    current
        The training or evaluation round whose replies are awaited; None when it is closed.
    silent
        Clients that did not reply to the training message in time.
    sent
        Messages of the current exchange.
    records
        Records of replies by client, without arrays, for a metrics function.
    """

    def __init__(self, server_round: int, timeout: float, *, timed: bool = False) -> None:
        self.server_round, self._timeout = server_round, timeout
        self._budget = Budget(timeout) if timed else None
        self.silent: set[int] = set()
        self.sent: list[Message] = []
        self.records: dict[int, RecordDict] = {}
        self.current: Round | EvaluationRound | None = None
        self._received: dict[str, int | Fault] = {}  # size of the reply in bytes, or its fault, by message id

    @property
    def budget(self) -> Budget:
        """The time limit of the round; outside ``start`` a new one for each exchange."""
        return self._budget or Budget(self._timeout)

    def open(self, current: Round | EvaluationRound) -> None:
        """Begin the exchange of a training or evaluation round."""
        self.current = current
        if isinstance(current, Round):
            self.silent = current.silent
        self.sent, self.records, self._received = [], {}, {}

    def restrict(self, sent: Iterable[Message]) -> None:
        """Remove the clients whose messages a subclass of the strategy dropped; ``sent`` are the remaining messages."""
        node_ids = {message.metadata.dst_node_id for message in sent}
        for message in self.sent:
            if self.current is not None and message.metadata.dst_node_id not in node_ids:
                self.current.leave_out(message.metadata.dst_node_id)
        self.sent = [message for message in self.sent if message.metadata.dst_node_id in node_ids]

    def watch(self, replies: Iterable[Message], what: str, number: int, callbacks: Sequence[RoundCallback]) -> Replies:
        """Return an iterator over ``replies`` that calls the callbacks and records the size or fault of each reply."""
        return Replies(self._watched(replies, what, number, callbacks))

    def _watched(
        self, replies: Iterable[Message], what: str, number: int, callbacks: Sequence[RoundCallback]
    ) -> Iterator[Message]:
        done = 0
        for reply in replies:
            self._received[reply.metadata.reply_to_message_id] = _size_or_fault(reply)
            done += 1  # noqa: SIM113 - enumerate would keep a reference to the reply
            for callback in callbacks:
                callback.on_reply(what, done, number)
            yield reply
            del reply  # keep no reference, so that the consumer can free it

    def read(self, replies: Iterable[Message], read: Callable[[int, Message], None]) -> None:
        """Call ``read`` for each reply, and refuse the clients with faults.

        A client whose reply a subclass of the strategy dropped is removed from the round.
        """
        current = self.current
        if current is None:
            return
        if self._received and isinstance(replies, Replies) and replies.are_read:
            raise ConfigError(
                f"round {self.server_round}: all {len(self._received)} replies were read before this strategy got "
                f"them, and they can be read once: let an overriding method begin with replies = list(replies)"
            )
        ids = {message.metadata.dst_node_id: message.metadata for message in self.sent}

        def read_timed(node_id: int, reply: Message) -> None:
            read(node_id, reply)
            if isinstance(current, Round):
                current.note_clock(node_id, ids[node_id].created_at, reply.metadata.created_at)

        for node_id, fault in read_each(self.sent, replies, read_timed):
            if fault is None:
                continue
            received = self._received.get(ids[node_id].message_id) if fault.kind == "silent" else None
            if isinstance(received, int):
                current.leave_out(node_id, received)
            else:
                current.refuse(node_id, received or fault)
        self.sent = []

    def keep_records(self, node_id: int, reply: Message) -> None:
        """Store the records of a reply, without its arrays."""
        self.records[node_id] = RecordDict(
            {name: record for name, record in reply.content.items() if not isinstance(record, ArrayRecord)}
        )


def _size_or_fault(reply: Message) -> int | Fault:
    """Return the size of a reply's arrays in bytes, or its fault if it is an error reply."""
    usable = reply_or_fault(reply)
    if isinstance(usable, Fault):
        return usable
    return sum(map(packing.count_bytes, messages.array_records(reply.content).values()))


class Slices:
    """The slices of a global state as array records: one for each plan, which all messages of the plan share.

    Flower stores an object once, and uploads it once to a SuperLink, if several messages have it. The record of the
    global model is the original one.
    """

    def __init__(
        self, federation: Federation, arrays: ArrayRecord, level_tensors: Callable[[float], State] = lambda _: {}
    ) -> None:
        self._level_tensors, self._levels = level_tensors, dict[float, ArrayRecord]()
        self.state = federation.architecture.check_state(packing.read_tensors(arrays))
        global_plan = federation.architecture.global_plan
        # The arrays of a user may also have running statistics, or other dtypes.
        types = [(name, str(tensor.dtype)) for name, tensor in self.state.items()]
        is_exact = [(name, f"torch.{array.dtype}") for name, array in arrays.items()] == types
        self._records = {global_plan: arrays} if is_exact else {}
        self._broadcasts: dict[Plan, ArrayRecord] = {}

    def arrays(self, plan: Plan) -> ArrayRecord:
        """Return the record of the slice of a plan."""
        if plan not in self._records:
            self._records[plan] = pack_tensors(plan.extract(self.state))
        return self._records[plan]

    def level_arrays(self, plan: Plan, rate: float) -> ArrayRecord:
        """Return the record of a slice in which the parameters of ``Slicing.by_level`` have the level's values."""
        tensors = self._level_tensors(rate)
        if not tensors:
            return self.arrays(plan)
        if rate not in self._levels:
            self._levels[rate] = pack_tensors({**plan.extract(self.state), **tensors})
        return self._levels[rate]

    def level_parameters(self, rates: Sequence[float]) -> ArrayRecord:
        """Return the record of the parameters of ``Slicing.by_level`` at each rate, named ``rate/parameter``."""
        return pack_tensors(
            {f"{rate}/{name}": tensor for rate in rates for name, tensor in self._level_tensors(rate).items()}
        )

    def broadcast(self, plan: Plan, tensors: Mapping[str, Tensor]) -> ArrayRecord:
        """Return the record of a slice of the stages' tensors, which are named ``stage/parameter``."""
        if plan not in self._broadcasts:
            parameters = {name: name.partition("/")[2] for name in tensors}
            axes = {name: plan.axes[parameter] for name, parameter in parameters.items() if parameter in plan.axes}
            self._broadcasts[plan] = pack_tensors(Plan(axes).extract(tensors))
        return self._broadcasts[plan]


def instruction(kind: str, node_id: int, arrays: ArrayRecord, config: Mapping[str, object]) -> Message:
    """Return a message with arrays and a config."""
    return Message(RecordDict({messages.ARRAYS: arrays, messages.CONFIG: messages.new_config(config)}), node_id, kind)


def client_config(
    federation: Federation, server_round: int, node_id: int, rate: float, callbacks: Sequence[RoundCallback] = ()
) -> dict[str, object]:
    """Return the config entries that the messages of training and evaluation have for a client."""
    training, architecture = federation.options.training, federation.architecture
    config: dict[str, object] = {
        messages.RATE: rate,
        messages.GLOBAL_RATE: federation.mix.global_rate,
        messages.SERVER_ROUND: server_round,
        messages.SEED: federation.seed,
        messages.PARTITION: federation.nodes.partition(node_id),
    }
    if base := architecture.frozen_fingerprint(rate):
        config[messages.BASE] = base
    if architecture.personal:
        config[messages.SHARED] = list(architecture.shared) or [""]  # a config has no empty list
    if architecture.clients_keep:
        config[messages.TRAINED] = node_id in federation.nodes.trained
        config[messages.RUN_KEY] = federation.run_key
        saved = [callback.oldest_checkpoint for callback in callbacks if callback.oldest_checkpoint is not None]
        config[messages.OLDEST_CHECKPOINT] = min(saved, default=server_round - 2)
    if training.proximal_mu:
        config[messages.PROXIMAL_MU] = float(training.proximal_mu)
    return config


@dataclass(frozen=True, slots=True)
class StageQueries:
    """Queries of stages before and after training; ``faults`` has the clients without a usable answer."""

    grid: Grid
    nodes: Nodes
    server_round: int
    config: Mapping[str, object]  # config entries with the client stages
    seconds: Callable[[], float]  # time limit of the next query
    faults: dict[int, Fault] = field(default_factory=dict)

    def converse(self, talk: Questions[Result]) -> Result:
        """Run a stage's generator of queries, and return its result.

        If it raises a ``RoundError``, the faults are added to the text.
        """
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
            return messages.read_config(reply, self.nodes.name(node_id))

        results = query(self.grid, messages.QUERY_STAGES, configs, self.seconds(), read)
        for node_id, result in results.items():
            if isinstance(result, Fault):
                self.faults[node_id] = result
            else:
                answers[node_id] = result
        return answers
