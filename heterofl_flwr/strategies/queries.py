"""Questions that the server asks before it sends work: who is there, what they can hold, their data's moments."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from heterofl_flwr import messages as wire
from heterofl_flwr.errors import HeteroFLError, ReplyError
from heterofl_flwr.federation.arrivals import QUERY_SECONDS, gather
from heterofl_flwr.federation.limits import Limits, RoundError
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.federation.privacy import clip_moments
from heterofl_flwr.federation.round import Federation
from heterofl_flwr.nn.moments import Moments, check_layers, check_possible, sum_robust
from heterofl_flwr.strategies.replies import lacks_handler, read_capability, read_each

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Queries:
    """Questions for static batch norm moments: the messages, each node's norm layers by rate, and the time."""

    sent: Sequence[Message]
    layers: Mapping[int, Mapping[float, Mapping[str, int]]]
    timeout: float


class MomentsSum:
    """Static batch norm moments of a federation's clients, as they come in.

    A robust sum keeps those of all clients until the end: two vectors in double precision for each layer and rate.

    Parameters
    ----------
    federation : Federation
        Whose clients and models they are.
    limits : Limits
        What an answer may be at most.
    robust : bool
        Whether they are joined by ``sum_robust``.
    """

    def __init__(self, federation: Federation, limits: Limits, *, robust: bool) -> None:
        self.federation = federation
        self._limits = limits
        self._robust = robust
        self._kept: dict[float, list[Moments]] = {}

    def add(self, node_id: int, found: Mapping[float, Moments]) -> None:
        """Add a client's moments, by rate; refuse them whole if any do not fit."""
        federation, most = self.federation, self._limits.examples
        examples = min(federation.nodes[node_id].num_examples or most, most)
        for rate, own in found.items():
            if own.kind != federation.fidelity.moments:
                raise ReplyError(f"moments of kind {own.kind}, expected {federation.fidelity.moments}")
            check_layers(own, federation.norms(rate))
            check_possible(own, examples)
        for rate, own in found.items():
            counted = clip_moments(own, federation.privacy) if federation.privacy.noise else own
            kept = self._kept.setdefault(rate, [])
            if self._robust or not kept:
                kept.append(counted)
            else:
                kept[0] += counted

    def result(self) -> dict[float, Moments]:
        """Return the moments of all clients, by rate."""
        return {rate: sum_robust(kept) for rate, kept in self._kept.items()}


def gather_nodes(
    grid: Grid, federation: Federation, minimum: int, wait: float, *, timeout: float = QUERY_SECONDS
) -> list[int]:
    """Return the ids of the nodes that are there, having asked the new ones what they can hold."""
    return list(
        gather(
            lambda: sorted(grid.get_node_ids()),
            lambda node_ids: learn_nodes(grid, federation, node_ids, timeout),
            federation,
            minimum=minimum,
            wait=wait,
        )
    )


def learn_nodes(grid: Grid, federation: Federation, node_ids: Sequence[int], timeout: float = QUERY_SECONDS) -> bool:
    """Ask the nodes that are new what they can hold, if any are. One that gives no answer gets the smallest rate."""
    unseen = [node_id for node_id in node_ids if node_id not in federation.nodes]
    if not unseen:
        return False
    config = wire.new_config({wire.RATES: list(federation.mix.rates)})  # a node that measures itself chooses among them
    sent = [Message(RecordDict({wire.CONFIG: config}), node_id, wire.QUERY_CAPABILITY) for node_id in unseen]
    answers: dict[int, Capability | None] = {}
    silent: list[str] = []

    def read(node_id: int, reply: Message) -> None:
        answers[node_id] = read_capability(reply, f"node {node_id}")

    def refuse(node_id: int, fault: str, came: bool) -> None:
        del came
        answers[node_id] = None
        silent.append(f"node {node_id}: {fault}")

    read_each(sent, grid.send_and_receive(sent, timeout=timeout), read, refuse, HeteroFLError)
    if silent:
        logger.warning(
            "%d of %d new nodes gave no usable answer to %s and train at the smallest rate, %g (does their ClientApp "
            "call heterofl_flwr.client.answer_queries?): %s",
            len(silent),
            len(unseen),
            wire.QUERY_CAPABILITY,
            federation.mix.rates[-1],
            "; ".join(silent[:3]),
        )
    # Names are asked for whatever the answers say: no node decides by what the others are ordered.
    names = {node.node_id: node.name for node in grid.get_nodes() if node.node_id in answers}
    federation.register(answers, names, node_ids)
    return True


def query_moments(
    grid: Grid,
    queries: Queries,
    add: Callable[[int, Mapping[float, Moments]], None],
    note: Callable[[int, str], None],
) -> set[int]:
    """Send the messages and add what each node answers, moments by rate; ``add`` refuses what does not fit.

    ``note`` takes a node and why its answer was not used. Those whose app has no handler for it are returned.
    """
    faults: list[str] = []
    lacking: set[int] = set()

    def read(node_id: int, reply: Message) -> None:
        # All are read before any is added, so an answer that does not fit changes nothing.
        add(node_id, _read_moments(reply, queries.layers[node_id], f"node {node_id}"))

    def refuse(node_id: int, fault: str, came: bool) -> None:
        del came
        if lacks_handler(fault):
            lacking.add(node_id)
            return
        faults.append(f"node {node_id}: {fault}")
        note(node_id, f"no usable answer to {wire.QUERY_MOMENTS}: {fault}")

    replies = grid.send_and_receive(list(queries.sent), timeout=queries.timeout)
    read_each(queries.sent, replies, read, refuse, HeteroFLError)
    if faults and len(faults) + len(lacking) == len(queries.sent):
        raise RoundError(
            f"none of {len(queries.sent)} nodes gave a usable answer to {wire.QUERY_MOMENTS}: let clients answer it "
            f"(answer_queries(app, build, data=...)) or evaluate without (Evaluation(static_norm=False)); "
            f"{'; '.join(faults[:3])}"
        )
    return lacking


def _read_moments(reply: Message, layers: Mapping[float, Mapping[str, int]], sender: str) -> dict[float, Moments]:
    """Return a reply's moments by rate; refuse what is far larger than those of these layers' channels."""
    wire.config_of(reply, sender)
    record = wire.arrays_in(reply.content).get(wire.MOMENTS)
    if record is None:
        raise ReplyError(f"{sender} sent no {wire.MOMENTS} record")
    most = 3 * sum(map(len, layers.values()))
    if len(record) > most:
        raise ReplyError(f"{sender} sent {len(record)} arrays of moments, expected {most}")
    widest = max((channels for own in layers.values() for channels in own.values()), default=0)
    wire.check_sizes(record, dict.fromkeys(record, widest), sender)
    return {rate: wire.unpack_moments(record, rate, sender) for rate in layers}
