"""One round of training: who trains which slice, the replies one by one, the new global model."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from heterofl_flwr.core.compression import Changes, restore
from heterofl_flwr.core.counting_mean import Aggregator
from heterofl_flwr.core.differential_privacy import clipped, in_steps, released
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.reply_checks import check_reply, trained_rows
from heterofl_flwr.errors import ReplyError, RoundError
from heterofl_flwr.federation.engine import Engine
from heterofl_flwr.federation.evaluation import Answer
from heterofl_flwr.federation.federation import State
from heterofl_flwr.federation.limits import LARGEST_ENTRY, least_replies
from heterofl_flwr.federation.privacy import TRAINING
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.federation.server_optimizer import apply_optimizer

NAMED = 3
"""Clients whose faults a failed round names."""

SILENT = "no reply in time"
"""The fault of a client that gave no reply."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainReply:
    """A client's reply to an instruction to train: its parameters, or what they changed by, and what it reports."""

    sub: Mapping[str, Tensor] | Changes
    num_examples: int
    labels: Sequence[int] | None
    capacity: float | None
    metrics: Mapping[str, float]
    num_bytes: int


FaultKind = Literal["failed", "rejected", "silent", "no handler", "simulated"]
"""The client failed; its reply is rejected; none came in time; its app has no function for what was asked; a simulated
device was lost, which is nobody's fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a client's reply is not used."""

    reason: str
    kind: FaultKind = "failed"


@dataclass(frozen=True, slots=True)
class Slice:
    """What a client trains: its rate, and its slice of the global state."""

    rate: float
    plan: Plan


class Round:
    """A round of training: opened for the clients that are there; ``add`` or ``refuse`` for each; then ``close``."""

    def __init__(self, engine: Engine, server_round: int, node_ids: Sequence[int], state: Mapping[str, Tensor]) -> None:
        self._engine, self._federation, self._options = engine, engine.federation, engine.options
        self.server_round = server_round
        engine.warn_of_few(len(node_ids))
        engine.silent = set()
        trainable = engine.trainable_nodes(node_ids)
        self.needed = self._options.sampling.number(len(trainable), "train")  # good replies
        self._state = self._federation.check_state(state)
        self._step = self._options.privacy.step
        self._aggregator = self._open_aggregator()
        self.slices: dict[int, Slice] = {}  # of each sampled client, in the order in which replies are added
        self.answers: dict[int, Answer] = {}  # of each client whose reply was added
        self._lost = 0
        self._unheard: list[int] = []
        schedule = self._options.transfer.learning_rate
        learning_rate = schedule(server_round) if schedule else 0.0
        self.log = engine.log = RoundRecord(
            server_round=server_round, seconds=0.0, learning_rate=learning_rate, rates={}
        )
        for node_id in engine.sample(server_round, trainable, "train"):
            rate = self._federation.rate(server_round, node_id)
            plan = self._federation.train_plan(server_round, node_id, rate)
            self.slices[node_id] = Slice(rate, plan)
            self.log.rates[self._federation.nodes.partition(node_id)] = rate
        self._check_drawn()

    def _check_drawn(self) -> None:
        """Fail before anybody trains in vain, if there cannot be enough replies."""
        drawn, wanted = len(self.slices), self._options.sampling.min_replies
        if drawn and isinstance(wanted, int) and wanted > drawn:
            raise RoundError(
                f"round {self.server_round}: {drawn} clients take part, and it needs replies of {wanted} (min_replies "
                f"or sample.min-replies): let more take part, or ask for fewer replies"
            )

    def _open_aggregator(self) -> Aggregator:
        # With noise, changes are summed, in steps of a grid; the zeros that they start from take no memory.
        zeros = {name: own.new_zeros((), dtype=torch.float64).expand_as(own) for name, own in self._state.items()}
        return self._options.averaging.open_aggregator(
            zeros if self._step else self._state,
            self._federation.rows,
            extra_rows=self._federation.fidelity.extra_rows == "fixed",
            largest=LARGEST_ENTRY,
            norm_bound=self._options.limits.norm_bound,
        )

    def add(self, node_id: int, reply: TrainReply) -> None:
        """Add a client's reply; ``ReplyError`` if it does not fit."""
        own, nodes = self.slices[node_id], self._federation.nodes
        self._federation.check_capacity(reply.capacity, nodes[node_id].limit)
        weight = 1.0 if self._options.averaging.weights == "equal" else float(reply.num_examples)
        self._add_parameters(own, reply, weight)
        self.answers[node_id] = float(reply.num_examples), reply.metrics
        self.log.bytes_up += reply.num_bytes
        self._engine.tally.accept(nodes.partition(node_id))
        if self._engine.counts_examples:
            nodes.set_examples(node_id, reply.num_examples)
        if reply.capacity is not None and reply.capacity != nodes[node_id].capacity:
            logger.info("node %s says that it can hold rate %g now", node_id, reply.capacity)
            nodes.set_capacity(node_id, reply.capacity)

    def _add_parameters(self, own: Slice, reply: TrainReply, weight: float) -> None:
        """Add the parameters to the mean; in HeteroFL every client counts once (section 3.1)."""
        rows, plan = self._federation.rows, own.plan
        classes = max((len(self._state[name]) for name in rows), default=0)
        if reply.labels is not None and rows and len(reply.labels) > classes:
            raise ReplyError(f"{len(reply.labels)} labels, expected up to {classes}: each class once")
        sub = restore(plan, self._state, reply.sub) if isinstance(reply.sub, Changes) else reply.sub
        labels, rule = reply.labels, self._options.averaging.labels
        if self._federation.keeps_rows or rule == "none":
            labels = None  # the classifier stays with the clients, or all of its rows count
        elif rule == "inferred":
            labels = self._infer_labels(own, sub, weight)
        if clip := self._options.privacy.clip:
            check_reply(self._state, plan, sub, weight, LARGEST_ENTRY)
            before = plan.extract(self._state)
            if self._step:
                sub = in_steps({name: one.double() - before[name] for name, one in sub.items()}, clip, self._step)
            else:
                sub = clipped(before, sub, clip)
        if untrained := self._federation.untrained(own.rate):
            plan = Plan({name: axes for name, axes in plan.axes.items() if name not in untrained})
            sub = {name: tensor for name, tensor in sub.items() if name not in untrained}
        self._aggregator.add(plan, sub, labels=labels, weight=weight)

    def _infer_labels(self, own: Slice, sub: Mapping[str, Tensor], weight: float) -> Sequence[int] | None:
        """Return the classes whose rows a client trained; None where its slice has none, or only some."""
        plan, untrained = own.plan, self._federation.untrained(own.rate)
        rows = {name: plan.axes[name] for name in self._federation.rows if name in plan.axes and name not in untrained}
        if not rows or any(axes[0].kept < axes[0].full for axes in rows.values()):
            return None
        check_reply(self._state, plan, sub, weight)
        model, sent = self._federation.model, Plan(rows).extract(self._state)
        # Clients begin with what their model holds of it, which in bfloat16 is rounded.
        before = {name: one.to(model.get_parameter(name).dtype) for name, one in sent.items()}
        return trained_rows(before, sub, min(axes[0].kept for axes in rows.values()))

    def refuse(self, node_id: int, fault: Fault) -> None:
        """Note why a client's reply is not used, and warn of it; with ``spare``, not of one that nobody waited for."""
        if fault.kind == "silent":
            self._engine.silent.add(node_id)
            if self._options.sampling.spare:  # whether it was waited for shows when all replies are read
                self._unheard.append(node_id)
                return
        self._note_fault(node_id, fault)

    def _note_fault(self, node_id: int, fault: Fault) -> None:
        partition = self._federation.nodes.partition(node_id)
        self.log.failures[partition] = fault.reason
        if fault.kind == "simulated":
            self._lost += 1
            return
        rate, limit = self.slices[node_id].rate, self._options.limits.refusals
        logger.warning("round %d: node %s at rate %g: %s", self.server_round, node_id, rate, fault.reason)
        if fault.kind == "rejected":
            self.log.refused = (*self.log.refused, partition)
            self._engine.tally.refuse(partition)
            if partition in self._engine.tally.suspended(limit):
                logger.warning("node %s is not drawn any more: %d replies refused in a row", node_id, limit)

    def close(self) -> State:
        """Return the new global state; fail if too few clients gave a usable reply."""
        if len(self.answers) < self.needed:
            for node_id in self._unheard:
                self._note_fault(node_id, Fault(SILENT, "silent"))
        self._check_replies()
        self._engine.warn_of_absent()
        new = self._result()
        self._engine.spent.add(TRAINING)
        self.log.privacy = self._engine.spent.facts()
        answers = self._engine.cap_examples(self.server_round, self.answers)
        self.log.note_training([(self.slices[node_id].rate, *answer) for node_id, answer in answers.items()])
        return new

    def _check_replies(self) -> None:
        """Fail if there are too few usable replies: the model and the metrics would be those of a few clients."""
        replies, wanted = self._aggregator.replies, self._options.sampling.min_replies
        asked = len(self.slices) - (self._lost if wanted == "auto" else 0)
        least = least_replies(wanted, min(self.needed, asked))
        if replies >= least:
            return
        faults = [f"; partition {partition}: {fault}" for partition, fault in self.log.failures.items()]
        more = f"; {len(faults) - NAMED} more failed" if len(faults) > NAMED else ""
        raise RoundError(
            f"round {self.server_round}: {replies} of {len(self.slices)} clients gave a usable reply, expected at "
            f"least {least}: mend what the others fail with, or let rounds go on with fewer (min_replies or "
            f"sample.min-replies, which is {wanted}){''.join(faults[:NAMED])}{more}"
        )

    def _result(self) -> State:
        held, new = self._aggregator.held, self._aggregator.result()
        if self._step:
            new = released(self._state, new, held, self._step)
        optimizer = self._options.averaging.optimizer
        if optimizer is None:
            return new
        return apply_optimizer(optimizer, self._state, new, self._federation.optimizer_state, held, self.server_round)


def check_open(current: Round | None) -> Round:
    """Return the round that is open; fail if none was configured."""
    if current is None:
        raise RoundError("the round was not configured: call configure_train (configure_fit) before aggregating")
    return current
