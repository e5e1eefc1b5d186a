"""Messages of a round: queries to clients, instructions with slices, and the replies."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import Fault, HeteroFLError, RoundError, name_faults
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.federation.evaluation_round import EvaluationRound
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.records import RoundCallback, host_log
from heterofl_flwr.federation.round import Round
from heterofl_flwr.federation.summary import warn_of_mix, warn_of_names
from heterofl_flwr.stages.stage import Said, Talk
from heterofl_flwr.transport import messages, packing
from heterofl_flwr.transport.compat import get_nodes
from heterofl_flwr.transport.exchange import read_each

QUERY_SECONDS = 120.0
"""Time limit of a capability query: a busy machine may have to start its clients first."""

TRAIN_SHARE = 0.8
"""Fraction of a round's time for training, if clients are asked again after it."""

MOMENTS_SHARE = 0.5
"""Fraction of the remaining time of a round for moments; the rest is for the evaluation."""

POLL_SECONDS = 0.5

Result = TypeVar("Result")


class RoundMessages:
    """The messages of one server round, made when it begins and dropped when it ends.

    Attributes
    ----------
    current
        The training or evaluation round whose replies are awaited; None when it is closed.
    silent
        Clients that did not answer in time when they were asked to train.
    sent
        Instructions of the current exchange.
    records
        Records of replies without their arrays, by client, for a metrics function.
    """

    def __init__(self, server_round: int, timeout: float) -> None:
        self.server_round, self._timeout = server_round, timeout
        self._deadline: float | None = None
        self.silent: set[int] = set()
        self.current: Round | EvaluationRound | None = None

    def open(self, current: Round | EvaluationRound) -> None:
        """Begin an exchange of training or of evaluation."""
        self.current = current
        if isinstance(current, Round):
            self.silent = current.silent
        self.sent: list[Message] = []
        self.records: dict[int, RecordDict] = {}
        self._received: set[str] = set()  # ids of answered messages

    def start_clock(self) -> None:
        """Start the time that all exchanges of the round share, so that no client delays each of them."""
        self._deadline = time.monotonic() + self._timeout

    def seconds_left(self, share: float = 1.0) -> float:
        """Return a fraction of the remaining seconds; the full timeout if the clock does not run."""
        return self._timeout if self._deadline is None else share * max(0.0, self._deadline - time.monotonic())

    def restrict(self, sent: Iterable[Message]) -> None:
        """Remove clients from the round whose instructions a subclass has dropped."""
        node_ids = {message.metadata.dst_node_id for message in sent}
        for message in self.sent:
            if self.current is not None and message.metadata.dst_node_id not in node_ids:
                self.current.leave_out(message.metadata.dst_node_id)
        self.sent = [message for message in self.sent if message.metadata.dst_node_id in node_ids]

    def watch(
        self, replies: Iterable[Message], what: str, number: int, callbacks: Sequence[RoundCallback]
    ) -> Iterator[Message]:
        """Yield the replies of a grid and call the callbacks; a subclass may drop replies afterwards."""
        done = 0
        for reply in replies:
            self._received.add(reply.metadata.reply_to_message_id)
            done += 1  # noqa: SIM113 - enumerate would keep the reply
            for callback in callbacks:
                callback.on_reply(what, done, number)
            yield reply
            del reply  # the consumer alone decides how long a reply lives

    def read(self, replies: Iterable[Message], read: Callable[[int, Message], None]) -> None:
        """Read the replies and note faults; a client whose reply a subclass has dropped is left out."""
        current = self.current
        if current is None:
            return
        ids = {message.metadata.dst_node_id: message.metadata for message in self.sent}
        for node_id, fault in read_each(self.sent, replies, read):
            if fault is None:
                continue
            if fault.kind == "silent" and ids[node_id].message_id in self._received:
                current.leave_out(node_id)
            else:
                current.refuse(node_id, fault)
        self.sent = []

    def keep_records(self, node_id: int, reply: Message) -> None:
        """Keep all records of a reply but its arrays."""
        records = {name: record for name, record in reply.content.items() if not isinstance(record, ArrayRecord)}
        self.records[node_id] = RecordDict(records)


class Slices:
    """The slices of a global state as records: one for each plan, shared by its messages.

    Flower keeps, and in a deployment uploads, equal objects once. The global model's record is the original one.
    """

    def __init__(self, federation: Federation, arrays: ArrayRecord) -> None:
        self.state = federation.architecture.check_state(packing.read_tensors(arrays))
        global_plan = federation.architecture.global_plan
        # A user's state may also hold running statistics.
        is_exact = list(arrays) == list(global_plan.axes)
        self._records = {global_plan: arrays} if is_exact else {}

    def record(self, plan: Plan) -> ArrayRecord:
        """Return the record of a slice."""
        if plan not in self._records:
            self._records[plan] = ArrayRecord(plan.extract(self.state))
        return self._records[plan]


def instruction(kind: str, node_id: int, arrays: ArrayRecord, config: Mapping[str, object]) -> Message:
    """Return a message with arrays and a config."""
    return Message(RecordDict({messages.ARRAYS: arrays, messages.CONFIG: messages.new_config(config)}), node_id, kind)


def client_config(
    federation: Federation, server_round: int, node_id: int, rate: float, checkpoint_every: int = 1
) -> dict[str, object]:
    """Return the config that every instruction contains."""
    transfer, architecture = federation.options.transfer, federation.architecture
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
    if federation.clients_keep:
        config[messages.TRAINED] = node_id in federation.nodes.trained
        config[messages.RUN_KEY] = federation.run_key
        config[messages.CHECKPOINT_EVERY] = checkpoint_every
    if transfer.proximal_mu is not None:
        config[messages.PROXIMAL_MU] = float(transfer.proximal_mu)
    return config


def query(
    grid: Grid,
    kind: str,
    configs: Mapping[int, Mapping[str, object]],
    seconds: float,
    read: Callable[[Message, str], Result],
) -> dict[int, Result | Fault]:
    """Send a query with a config to each client; return its answer, or the fault."""
    sent = [
        Message(RecordDict({messages.CONFIG: messages.new_config(config)}), node_id, kind)
        for node_id, config in configs.items()
    ]
    replies = grid.send_and_receive(sent, timeout=seconds) if sent else []
    return dict(read_each(sent, replies, lambda node_id, reply: read(reply, f"node {node_id}"), HeteroFLError))


@dataclass(frozen=True, slots=True)
class StageQueries:
    """Queries of stages before and after training; ``faults`` holds the clients that gave no usable answer."""

    grid: Grid
    server_round: int
    config: Mapping[str, object]  # the stages' part of an instruction
    seconds: float
    faults: dict[int, Fault] = field(default_factory=dict)

    def converse(self, talk: Talk[Result]) -> Result:
        """Run a stage's generator of queries and return its result; a ``RoundError`` of it names the faults."""
        try:
            questions = next(talk)
            while True:
                questions = talk.send(self._query(questions))
        except StopIteration as end:
            result: Result = end.value
            return result
        except RoundError as error:
            faults = {node_id: fault.reason for node_id, fault in self.faults.items()}
            raise RoundError(f"{error}; {name_faults('node', faults)}" if faults else str(error)) from error

    def _query(self, questions: Mapping[int, Said]) -> dict[int, Said]:
        common = {**self.config, messages.SERVER_ROUND: self.server_round}
        configs = {node_id: {**common, **question} for node_id, question in questions.items()}
        answers: dict[int, Said] = {}
        results = query(self.grid, messages.QUERY_STAGES, configs, self.seconds, messages.read_config)
        for node_id, result in results.items():
            if isinstance(result, Fault):
                self.faults[node_id] = result
            else:
                answers[node_id] = result
        return answers


def available_nodes(grid: Grid, federation: Federation, server_round: int, timeout: float = QUERY_SECONDS) -> list[int]:
    """Wait until there are enough nodes, register new ones, and return the ids of all.

    It also waits while new nodes report more partitions than there are nodes: a simulation's first round should not
    begin with a part of its clients.
    """
    sampling, is_first = federation.options.sampling, not list(federation.nodes)
    deadline, has_logged = time.monotonic() + sampling.wait, False
    while True:
        node_ids = sorted(grid.get_node_ids())
        federation.nodes.forget({*federation.nodes}.difference(node_ids))
        enough = len(node_ids) >= sampling.available
        if not (enough or has_logged):
            has_logged, least = True, f"expected at least {sampling.available}"
            host_log.info("waiting up to %g s for nodes: %d are there, %s", sampling.wait, len(node_ids), least)
        new = [node_id for node_id in node_ids if node_id not in federation.nodes] if enough else []
        if new:
            seconds = min(QUERY_SECONDS, timeout)
            config = {messages.SERVER_ROUND: server_round}  # mods of apps read it in any message
            configs = dict.fromkeys(new, config)
            answers = query(grid, messages.QUERY_CAPABILITY, configs, seconds, packing.read_capability)
            if any(isinstance(answer, Fault) for answer in answers.values()):  # nodes may have left meanwhile
                gone = {*node_ids}.difference(grid.get_node_ids())
                node_ids = [node_id for node_id in node_ids if node_id not in gone]
                answers = {node_id: answer for node_id, answer in answers.items() if node_id not in gone}
                enough = len(node_ids) >= sampling.available
            # Names do not depend on the answers, so no node decides the order of the others.
            names = {node.node_id: getattr(node, "name", "") for node in get_nodes(grid) if node.node_id in answers}
            federation.register(answers, names, node_ids)
        incomplete = not enough or (new and federation.nodes.most_said() > len(node_ids))
        if not incomplete or time.monotonic() >= deadline:
            break
        time.sleep(min(POLL_SECONDS, sampling.wait))
    if not enough:
        raise RoundError(
            f"{len(node_ids)} nodes are there after {sampling.wait:g} s, expected at least {sampling.available}: start "
            f"more SuperNodes (flower-supernode), simulate more (flwr run . --federation-config 'num-supernodes=20'), "
            f"or ask for fewer (min_available_nodes)"
        )
    if is_first:
        warn_of_mix(federation, server_round, node_ids)
        names_and_ids = {str(node_id) for node_id in node_ids} | {getattr(node, "name", "") for node in get_nodes(grid)}
        warn_of_names(federation.options.limits, names_and_ids)
    return node_ids
