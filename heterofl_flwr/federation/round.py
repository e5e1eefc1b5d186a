"""One round of training: who trains which slice, the replies one by one, the new global model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heterofl_flwr.common.errors import SILENT, Fault, RoundError, listed, name_faults
from heterofl_flwr.core.aggregator import Version
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.federation.evaluation import Answer, weighted_means
from heterofl_flwr.federation.federation import Federation, State
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.federation.sampling import least_replies
from heterofl_flwr.stages.chain import Chain
from heterofl_flwr.stages.client_stage import Fields, Outgoing
from heterofl_flwr.stages.conversation import Questions
from heterofl_flwr.stages.server_stage import Update

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReply(Outgoing):
    """A client's reply to an instruction to train: what it sends, what it can hold now, and the bytes of its arrays."""

    metrics: Mapping[str, float]
    capacity: float | None = None
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a client trains: its rate, the rate's level, and its slice of the global state.

    ``sent`` is that slice, where its state may be another than the round's.
    """

    rate: float
    level: str
    plan: Plan
    sent: Version | None = None


class Round:
    """A round of training: opened for the clients that are there; ``add`` or ``refuse`` for each; then ``close``."""

    def __init__(
        self,
        federation: Federation,
        chain: Chain,
        server_round: int,
        node_ids: Sequence[int],
        state: Mapping[str, Tensor],
        *,
        remote: bool = False,
        drawn: Sequence[int] | None = None,
    ) -> None:
        self._federation, self._chain, self._options = federation, chain, federation.options
        self.server_round, self._state = server_round, state
        self.trainable = trainable = federation.trainable_nodes(node_ids)
        self.needed = self._options.sampling.number(len(trainable), "train")  # good replies
        chain.open(federation.context(server_round, state), remote=remote)
        self.slices: dict[int, Sampled] = {}  # of each sampled client, in the order in which replies are added
        self.answers: dict[int, Answer] = {}  # of each client whose reply was added
        self.silent: set[int] = set()  # those that did not answer in time
        self._late: list[str] = []  # names of nodes that are one message behind
        self._lost = 0
        learning_rate = federation.learning_rate(server_round)
        self.log = RoundRecord(server_round=server_round, seconds=0.0, learning_rate=learning_rate, rates={})
        missing = len(federation.nodes.away) + len(federation.nodes.unanswered.difference(trainable))
        self.log.expected = self._options.sampling.number(len(trainable) + missing, "train")
        for node_id in federation.sample(server_round, trainable, "train") if drawn is None else drawn:
            self.begin(node_id)
        self._check_drawn()

    def begin(self, node_id: int, own: Sampled | None = None) -> None:
        """Let a client train in this round: what it has begun already, or the slice of its rate."""
        if own is None:
            rate = self._federation.rate(self.server_round, node_id)
            plan = self._federation.train_plan(self.server_round, node_id, rate)
            own = Sampled(rate, level_name(rate), plan)
        self.slices[node_id] = own
        self.log.rates[self._federation.nodes.partition(node_id)] = own.rate

    def _check_drawn(self) -> None:
        """Fail before anybody trains in vain, if there cannot be enough replies."""
        drawn, wanted = len(self.slices), self._options.sampling.min_replies
        if drawn and isinstance(wanted, int) and wanted > drawn:
            raise RoundError(
                f"round {self.server_round}: {drawn} clients take part, and it needs replies of {wanted} (min_replies "
                f"or sample.min-replies): let more take part, or ask for fewer replies"
            )

    def note_sent(self, node_id: int, num_bytes: int) -> None:
        """Note the bytes sent to a client."""
        level, sent = self.slices[node_id].level, self.log.bytes_by_level
        self.log.bytes_down += num_bytes
        sent[level] = sent.get(level, 0) + num_bytes

    def before(self) -> Questions[Mapping[int, Fields]]:
        """Ask clients before training; return the clients that may train, with extra fields of their instructions."""
        clients = {node_id: Update(plan=own.plan, tensors={}, rate=own.rate) for node_id, own in self.slices.items()}
        return self._chain.before(clients)

    def add(self, node_id: int, reply: TrainReply) -> None:
        """Add a client's reply; ``ReplyError`` if it does not fit."""
        own, nodes = self.slices[node_id], self._federation.nodes
        if reply.capacity is not None:
            self._federation.check_capacity(reply.capacity, nodes[node_id].limit)
        self._chain.add(
            Update(
                plan=own.plan,
                tensors={name: self._as_single(name, own) for name, own in reply.tensors.items()},
                rate=own.rate,
                labels=None if self._federation.ignores_labels else reply.labels,
                weight=1.0 if self._options.averaging.weights == "equal" else float(reply.num_examples),
                form=reply.form,
                scales=reply.scales,
                client=node_id,
                fields=reply.fields,
                version=own.sent,
            )
        )
        stale = {} if own.sent is None else {"staleness": float(self.server_round - 1 - own.sent.number)}
        self.answers[node_id] = float(reply.num_examples), {**reply.metrics, **stale}
        self.log.bytes_up += reply.num_bytes
        nodes.trained.add(node_id)
        if reply.capacity is not None and reply.capacity != nodes[node_id].capacity:
            logger.info("node %s says that it can hold rate %g now", node_id, reply.capacity)
            nodes.set_capacity(node_id, reply.capacity)

    def _as_single(self, name: str, own: Tensor) -> Tensor:
        """Return a tensor in the model's type where it came in double precision, as from Flower's SecAgg+."""
        known = self._state.get(name)
        return own if known is None or own.dtype != torch.float64 else own.to(known.dtype)

    def refuse(self, node_id: int, fault: Fault) -> None:
        """Note why a client's reply is not used, and warn of it; with ``spare``, not of one that nobody waited for."""
        if fault.kind in ("silent", "gone", "late"):
            self.silent.add(node_id)
            # Whether a silent one was waited for shows when all replies are read.
            if fault.kind == "silent" and self._options.sampling.spare:
                return
        self._note_fault(node_id, fault)

    def leave_out(self, node_id: int) -> None:
        """Go on without a client of which the strategy's user wants nothing in this round, which is nobody's fault."""
        del self.slices[node_id], self.log.rates[self._federation.nodes.partition(node_id)]
        self.needed = min(self.needed, len(self.slices))

    def _note_fault(self, node_id: int, fault: Fault) -> None:
        nodes = self._federation.nodes
        partition = nodes.partition(node_id)
        if fault.kind == "late":
            self._late.append(nodes.name(node_id))
        self.log.failures[partition] = fault.reason
        if name := nodes.registered_name(node_id):
            self.log.names[partition] = name
        if fault.kind == "simulated":
            self._lost += 1
            return
        rate = self.slices[node_id].rate
        logger.warning("round %d: %s at rate %g: %s", self.server_round, nodes.name(node_id), rate, fault.reason)
        if fault.kind == "rejected":
            self.log.refused = (*self.log.refused, partition)

    def close(self) -> State:
        """Return the new global state; fail if too few clients gave a usable reply."""
        if self._options.sampling.spare and len(self.answers) < self.needed:
            for node_id in (own for own in self.slices if own in self.silent):
                self._note_fault(node_id, Fault(SILENT, "silent"))
        self.log.answered, self.log.notes = len(self.answers), self._federation.nodes.notes()
        if self._late:
            self.log.notes = (*self.log.notes, f"one message late, restart its SuperNode: {listed(self._late)}")
        self._check_replies()
        new = self._chain.close()
        self.log.privacy = self._chain.metrics()
        if closed := self.log.privacy.get("closed-fraction"):
            self.log.notes = (*self.log.notes, f"{closed:.0%} of the model stays closed (secure-sum)")
        ordered = sorted(self.answers, key=lambda node_id: -self.slices[node_id].rate)
        levels = dict.fromkeys(self.slices[node_id].level for node_id in ordered)
        self.log.train = weighted_means(list(self.answers.values()))
        self.log.train_by_level = {
            level: weighted_means([own for node_id, own in self.answers.items() if self.slices[node_id].level == level])
            for level in levels
        }
        return new

    def _check_replies(self) -> None:
        """Fail if there are too few usable replies: the model and the metrics would be those of a few clients."""
        replies, wanted = self._chain.replies, self._options.sampling.min_replies
        asked = len(self.slices) - (self._lost if wanted == "auto" else 0)
        # Chance took all simulated devices, or a stage lets nobody train: the model stays as it is.
        if (self._lost and not asked) or self._chain.skipped:
            return
        least = least_replies(wanted, min(self.needed, asked))
        faults = dict(zip(self.log.failed_names, self.log.failures.values(), strict=True))
        if replies >= least:
            self._check_weights()
            return
        raise RoundError(
            f"round {self.server_round}: {replies} of {len(self.slices)} clients gave a usable reply, expected at "
            f"least {least}: correct the errors of the others, or let rounds go on with fewer (min_replies or "
            f"sample.min-replies, which is {wanted}); {name_faults('', faults)}"
        )

    def _check_weights(self) -> None:
        """Fail if no reply would count in the mean: the model would stay as it is, round after round."""
        if self._options.averaging.weights == "examples" and not any(number for number, _ in self.answers.values()):
            raise RoundError(
                f"round {self.server_round}: all {len(self.answers)} clients count 0 examples, and with "
                f"weights='examples' none of them counts: let reply have the number of examples that a client trained "
                f"on, or choose weights='equal'"
            )
