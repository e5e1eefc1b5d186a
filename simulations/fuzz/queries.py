"""Answers to the server's questions, and FedH2L's posteriors: one of three nodes is hostile."""

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from heterofl_flwr import Fidelity, HeteroFL, LocalGrid
from heterofl_flwr.client import answer_queries
from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.federation.evaluation_round import MomentsSum
from heterofl_flwr.nn.moments import LayerMoments, Moments
from heterofl_flwr.strategies.fedh2l import FedH2L
from heterofl_flwr.strategies.instructions import instruction, register_nodes
from heterofl_flwr.strategies.read_replies import read_each, read_moments
from simulations.fuzz.mutations import ANY, MUTATIONS, Envelope
from simulations.fuzz.target import Target

FORMS = ("names", "shapes", "dtypes", "entries", "octets", "headers", "stypes", "sizes", "records", "schemas", "keys")


class Net(nn.Module):
    """One batch norm layer."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.hidden, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.hidden(x))
        return found


class Forging(LocalGrid):
    """A grid that changes the answer of its second node on the way."""

    change: Callable[[Message], Message] | None = None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if self.change is not None and len(replies) == 3:
            replies[1] = self.change(replies[1])
        return replies


class Questions:
    """A strategy that asks three nodes, again and again."""

    def __init__(self, grid: Forging) -> None:
        self._grid = grid
        self._h2l = FedH2L(3, seed_size=4, seed_batch=2)
        self._h2l.configure_train(1, ArrayRecord(), ConfigRecord(), grid)  # it registers its nodes
        self.targets = [
            Target("capability", ("says", "schemas", "keys", "records"), partial(self._try, self._capability)),
            Target("moments", (*FORMS, "possible"), partial(self._try, self._moments)),
            Target("posteriors", (*FORMS, "values"), partial(self._try, self._posteriors)),
        ]

    def _try(self, ask: Callable[[random.Random], str], kind: str, draw: random.Random) -> str:
        """Ask a question, of which an answer is forged."""
        self._grid.change = lambda message: _forge(message, kind, draw)
        try:
            return ask(draw)
        finally:
            self._grid.change = None

    def _capability(self, draw: random.Random) -> str:
        federation = HeteroFL(Net, "a1-c2", assignment=draw.choice(["fix", "dynamic"])).federation
        ids = list(self._grid.get_node_ids())
        register_nodes(self._grid, federation, ids)
        honest = HeteroFL(Net, "a1-c2", assignment=federation.assignment).federation
        others = [ids[0], ids[2]]
        honest.register({node_id: federation.nodes[node_id] for node_id in others} | {ids[1]: None}, present=ids)
        if [federation.rate(1, node_id) for node_id in others] != [honest.rate(1, node_id) for node_id in others]:
            return "changed: the levels of others"
        return "refused" if federation.nodes[ids[1]] == honest.nodes[ids[1]] else "harmless"

    def _moments(self, draw: random.Random) -> str:
        kind: Variant = draw.choice(["paper", "fixed"])
        federation = HeteroFL(Net, "a1", fidelity=Fidelity.of("paper", moments=kind)).federation
        ids = list(self._grid.get_node_ids())
        config = {"rate": 1.0, "rates": [1.0], "seed": 0, "server-round": 1, "partition": 0, "moments-kind": kind}
        state = ArrayRecord(federation.initial_state())
        sent = [instruction("query.moments", node_id, state, config) for node_id in ids]
        refused: list[int] = []
        federation.register(dict.fromkeys(ids), present=ids)
        sums = [MomentsSum(federation, robust=robust) for robust in (False, True)]

        def read(node_id: int, reply: Message) -> None:
            found = read_moments(reply, {1.0: federation.norms(1.0)}, f"node {node_id}")
            for own in sums:
                own.add(node_id, found)

        replies = self._grid.send_and_receive(sent)
        read_each(sent, replies, read, lambda node_id, fault: refused.append(node_id), HeteroFLError)
        if refused not in ([], [ids[1]]):
            return "changed: others were refused"
        for own in sums:
            merged = own.result()[1.0]
            mean, variance = merged.statistics("norm")
            good = mean.isfinite().all() and variance.isfinite().all() and (variance >= 0).all()
            if not good or (refused and merged.layers["norm"].count != 2 * (1 if kind == "paper" else 8)):
                return "changed: the statistics"
        return "refused" if refused else "harmless"

    def _posteriors(self, draw: random.Random) -> str:
        asked = self._h2l.configure_train(1, ArrayRecord(), ConfigRecord(), self._grid)
        sent = self._h2l.relay(self._grid, asked, 60.0)
        sums = [message.content.array_records["posteriors"]["posteriors"].numpy().sum(-1) for message in sent]
        if any(abs(own - 1).max() > 1e-3 for own in sums if own.size):
            return "changed: what peers get"
        return "harmless" if len(sent) == 3 else "refused"


def _forge(message: Message, kind: str, draw: random.Random) -> Message:
    envelope = Envelope.of(message)
    if kind == "says":
        for key in draw.sample(["capacity", "partition", "num-partitions", "num-examples", "labels"], 2):
            envelope.config[key] = draw.choice([*ANY, 0.01, 10**9, [0, "a"]])
    elif kind == "possible":
        envelope.arrays["moments"] |= _impossible(draw, envelope)
    elif kind == "values":
        values = torch.tensor(draw.choice([[2.0, -1.0, 0.0], [1e30, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.4, 0.2]]))
        envelope.arrays["posteriors"]["posteriors"] = Array(values.repeat(2, 1))
    else:
        MUTATIONS[kind](draw, envelope)
    forged = envelope.seal(message)
    forged.metadata.__dict__.update(message.metadata.__dict__)
    return forged


def _impossible(draw: random.Random, envelope: Envelope) -> dict[str, Array]:
    """Return moments of the right form that no data have."""
    kind: Variant = "paper" if any("paper" in name for name in envelope.arrays["moments"]) else "fixed"
    values = [0.0, 1.0, -1.0, 1e30, 1e300, -1e300]
    count = draw.choice([0, 1, 2, 8, 2**53, 2**62])
    first, second = (torch.full((4,), draw.choice(values), dtype=torch.float64) for _ in range(2))
    tensors = Moments(kind, {"norm": LayerMoments(count, first, second)}).to_tensors()
    return {f"1.0/{name}": Array(tensor) for name, tensor in tensors.items()}


def targets() -> Iterator[Target]:
    """Yield the questions; their grid lasts until the last is answered."""
    app = ClientApp()
    answer_queries(app, Net, lambda context: [torch.arange(24.0).view(8, 3).sin()])

    @app.train("publish")
    def publish(message: Message, context: object) -> Message:
        said = {"posteriors": {"posteriors": Array(torch.full((2, 3), 1 / 3))}}
        return Envelope(said, {"heterofl-schema": 1}, {"num-examples": 1}).seal(message)

    with Forging(app, 3) as grid:
        yield from Questions(grid).targets
