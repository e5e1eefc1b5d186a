"""The messages that the server sends: queries for the clients' capabilities, and instructions with slices."""

from collections.abc import Mapping, Sequence
from functools import partial

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from heterofl_flwr import messages, packing
from heterofl_flwr.compat import get_nodes
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import Fault, HeteroFLError, ReplyError
from heterofl_flwr.exchange import read_each
from heterofl_flwr.federation.engine import QUERY_SECONDS, Engine
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.strategies.read_replies import read_capability


class Slices:
    """The slices of a global state as records: one for each plan, shared by its messages.

    Flower keeps, and in a deployment uploads, equal objects once. The whole model's record is the one that came.
    """

    def __init__(self, federation: Federation, arrays: ArrayRecord) -> None:
        self._arrays, self._whole = arrays, federation.plan(federation.mix.global_rate)
        self._records: dict[Plan, ArrayRecord] = {}
        self.state = federation.check_state(packing.read_tensors(arrays))

    def record(self, plan: Plan) -> ArrayRecord:
        """Return the record of a slice."""
        if plan not in self._records:
            # A user's state may hold running statistics too.
            is_whole = list(self._arrays) == list(plan.axes) and plan == self._whole
            self._records[plan] = self._arrays if is_whole else ArrayRecord(plan.extract(self.state))
        return self._records[plan]


def instruction(kind: str, node_id: int, arrays: ArrayRecord, config: Mapping[str, object]) -> Message:
    """Return a message with a config of its own."""
    return Message(RecordDict({messages.ARRAYS: arrays, messages.CONFIG: messages.new_config(config)}), node_id, kind)


def client_config(engine: Engine, server_round: int, node_id: int, rate: float) -> dict[str, object]:
    """Return what every client needs to know of its task."""
    federation, transfer = engine.federation, engine.options.transfer
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
        config[messages.TRAINED] = node_id in federation.nodes.trained
    if transfer.learning_rate is not None:
        config[messages.LEARNING_RATE] = transfer.learning_rate(server_round)
    if transfer.proximal_mu is not None:
        config[messages.PROXIMAL_MU] = float(transfer.proximal_mu)
    return config


def available_nodes(grid: Grid, engine: Engine, server_round: int, timeout: float = QUERY_SECONDS) -> list[int]:
    """Return the ids of the nodes that are there, as soon as there are enough, having registered the new ones."""
    register = partial(register_nodes, grid, engine.federation, server_round, min(QUERY_SECONDS, timeout))
    return list(engine.wait_for_nodes(lambda: sorted(grid.get_node_ids()), register))


def register_nodes(
    grid: Grid, federation: Federation, server_round: int, timeout: float, node_ids: Sequence[int]
) -> bool:
    """Ask new nodes what they can hold, and return whether there are any."""
    unseen = [node_id for node_id in node_ids if node_id not in federation.nodes]
    if not unseen:
        return False
    config = messages.new_config({messages.SERVER_ROUND: server_round})  # which mods of apps read in any message
    sent = [Message(RecordDict({messages.CONFIG: config}), node_id, messages.QUERY_CAPABILITY) for node_id in unseen]
    answers: dict[int, Capability | ReplyError] = {}

    def read(node_id: int, reply: Message) -> None:
        answers[node_id] = read_capability(reply, f"node {node_id}")

    def refuse(node_id: int, fault: Fault) -> None:
        cause = f"; {messages.NOT_CONVERTED}" if fault.kind == "no handler" else ""
        answers[node_id] = ReplyError(f"{fault.reason}{cause}")

    read_each(sent, grid.send_and_receive(sent, timeout=timeout), read, refuse, HeteroFLError)
    # Whatever the answers say, so that no node decides by what the others are ordered.
    names = {node.node_id: getattr(node, "name", "") for node in get_nodes(grid) if node.node_id in answers}
    federation.register({node_id: answers[node_id] for node_id in unseen}, names, node_ids)
    return True
