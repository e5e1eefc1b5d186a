"""A round of training."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from heterofl_flwr.common.errors import MORE_TIME, SILENT, Fault, RoundError, counted, listed, name_faults
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.federation.architecture import State
from heterofl_flwr.federation.client_levels import Sampled, failed_levels
from heterofl_flwr.federation.client_metrics import Answer, majority_means
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.reply_remarks import ReplyRemarks
from heterofl_flwr.federation.round_record import RoundRecord, server_names
from heterofl_flwr.federation.sampling import least_replies
from heterofl_flwr.stages.chain import Chain
from heterofl_flwr.stages.client_stage import FULL_PRECISION, Fields, TrainReply
from heterofl_flwr.stages.conversation import Questions
from heterofl_flwr.stages.server_stage import RoundContext, Update

logger = logging.getLogger(__name__)


class Round:
    """A round of training: call ``add`` or ``refuse`` for each sampled client, then ``close``.

    Attributes
    ----------
    trainable
        The clients that can be sampled.
    needed
        The number of usable replies to wait for.
    slices
        Rate, level and slice of each client of the round.
    answers
        For each valid reply: the client's number of examples, and its metrics.
    silent
        Clients without a reply to this round's message, because the reply is late or the node has gone.
    remarks
        Remarks on valid replies.
    log
        The record of the round.
    """

    def __init__(
        self,
        federation: Federation,
        chain: Chain,
        server_round: int,
        node_ids: Sequence[int],
        state: Mapping[str, Tensor],
        sampled: Sequence[int],
        *,
        learning_rate: float = 0.0,
        remote: bool = False,
    ) -> None:
        self._federation, self._chain, self._options = federation, chain, federation.options
        self.server_round, self._state = server_round, state
        self.trainable = trainable = federation.levels.trainable_nodes(node_ids)
        self.needed = self._number(len(trainable))
        if isinstance(least := self._options.sampling.min_replies, int):
            self.needed = max(self.needed, least)
        self.log = RoundRecord(server_round=server_round, seconds=0.0, learning_rate=learning_rate, rates={})
        nodes = federation.nodes
        missing = len(nodes.away) + (len(nodes.unanswered.difference(trainable)) if nodes.unanswered else 0)
        self.log.expected = self._number(len(trainable) + missing)
        bound = self._options.limits.default_norm_bound(state, remote=remote)
        chain.open(self._context(), default_norm_bound=bound)
        self.slices: dict[int, Sampled] = {}
        self.answers: dict[int, Answer] = {}
        self._sent_bytes = Counter[int]()
        self.remarks = ReplyRemarks(server_round, nodes)
        self.silent: set[int] = set()
        self._faults: dict[int, Fault] = {}
        self._capacities: dict[int, float] = {}  # new capacities; ``close`` stores them after the stages have run
        for node_id in sampled:
            self.begin(node_id)
        self._check_sampled()

    def _number(self, clients: int) -> int:
        """Return the number of replies to wait for. ``clients`` is the number of clients that can be sampled."""
        size = self._options.asynchronous.size
        return min(size, clients) if size else self._options.sampling.number(clients, "train")

    def _context(self) -> RoundContext:
        architecture, privacy = self._federation.architecture, self._options.privacy
        return RoundContext(
            server_round=self.server_round,
            state=self._state,
            rows=architecture.rows,
            untrained=architecture.untrained,
            holders=self._federation.levels.count_holders(self.server_round, self._state),
            by_label=not architecture.ignores_labels,
            extra_rows=self._options.averaging.fidelity.extra_rows == "fixed",
            grid=(privacy.clip, privacy.step) if privacy.noise else None,
            learning_rate=self.log.learning_rate,
            run=self._federation.run_key,
            global_rate=self._federation.mix.global_rate,
        )

    def begin(self, node_id: int, sampled: Sampled | None = None) -> None:
        """Add a client. ``sampled`` has its rate and slice; by default, they are computed for this round."""
        partition = self._federation.nodes.partition(node_id)
        if sampled is None:
            rate = self._federation.levels.rate(self.server_round, node_id)
            plan = self._federation.architecture.train_plan(self.server_round, rate, partition)
            sampled = Sampled(rate, level_name(rate), plan)
        self.slices[node_id] = sampled
        self._federation.nodes.counted.setdefault(partition, self.server_round - 1)
        self.log.rates[partition] = sampled.rate
        if name := self._federation.nodes.registered_name(node_id):
            self.log.names[partition] = name

    def _check_sampled(self) -> None:
        number, min_replies = len(self.slices), self._options.sampling.min_replies
        if number and isinstance(min_replies, int) and min_replies > number:
            raise RoundError(
                f"round {self.server_round}: {counted(number, 'client')}, and replies of {min_replies} are needed "
                f"(min_replies or sample.min-replies): let more take part, or ask for fewer replies"
            )

    def note_sent(self, node_id: int, num_bytes: int) -> None:
        """Record the number of bytes sent to a client."""
        self._sent_bytes[node_id] += num_bytes
        level = self.slices[node_id].level
        self.log.bytes_down += num_bytes
        self.log.bytes_by_level[level] = self.log.bytes_by_level.get(level, 0) + num_bytes

    def before(self) -> Questions[Mapping[int, Fields]]:
        """Return a generator: it yields the stages' queries, and returns extra config entries by client."""
        updates = {id_: Update(plan=client.plan, tensors={}, rate=client.rate) for id_, client in self.slices.items()}
        return self._chain.before(updates)

    def add(self, node_id: int, reply: TrainReply) -> None:
        """Add a client's reply to the mean; raise ``ReplyError`` if the reply is invalid."""
        sampled, nodes = self.slices[node_id], self._federation.nodes
        equal = self._options.averaging.weights == "equal"
        capacity = self._federation.levels.usable_capacity(node_id, reply.capacity)
        # Some apps and mods of Flower, such as SecAgg+, reply in float64; convert it to the model's dtype.
        double = [name for name, tensor in reply.tensors.items() if tensor.dtype == torch.float64]
        converted = {name: reply.tensors[name].to(self._state[name].dtype) for name in double if name in self._state}
        self._chain.add(
            Update(
                plan=sampled.plan,
                tensors={**reply.tensors, **converted},
                rate=sampled.rate,
                labels=None if self._federation.architecture.ignores_labels else reply.labels,
                weight=float(min(reply.num_examples, 1) if equal else reply.num_examples),
                form=reply.form,
                scales=reply.scales,
                client=node_id,
                fields=reply.fields,
                version=sampled.sent,
            )
        )
        staleness = {} if sampled.sent is None else {"staleness": float(self.server_round - 1 - sampled.sent.number)}
        self.answers[node_id] = float(reply.num_examples), {**reply.metrics, **server_names(staleness, reply.metrics)}
        self.log.bytes_up += reply.num_bytes
        if reply.num_examples and self._is_unchanged(sampled, reply):
            self.remarks.note_unchanged(node_id)
        if capacity is not None and capacity != nodes[node_id].capacity:
            logger.info("%s says that it can hold rate %g now", nodes.name(node_id), capacity)
            self._capacities[node_id] = capacity

    def _is_unchanged(self, sampled: Sampled, reply: TrainReply) -> bool:
        if reply.form != FULL_PRECISION:
            return self._chain.summing is None and not any(tensor.any() for tensor in reply.tensors.values())
        axes, version = sampled.plan.axes, sampled.sent
        slices = (
            (name, version.tensors if version else Plan({name: axes[name]}).extract(self._state)) for name in axes
        )
        return bool(axes) and all(torch.equal(reply.tensors[name], sent[name]) for name, sent in slices)

    def refuse(self, node_id: int, fault: Fault) -> None:
        """Record and log the reason why a client's reply is not used.

        With spare clients, a silent client is recorded only if too few clients have replied by ``close``.
        """
        if fault.kind == "unsent":
            self.note_sent(node_id, -self._sent_bytes[node_id])
            del self._sent_bytes[node_id]
        if fault.kind in ("silent", "gone", "late"):
            self.silent.add(node_id)
            if fault.kind == "silent" and self._options.sampling.spare:  # close() finds out if too few replied
                return
        self._note_fault(node_id, fault)

    def leave_out(self, node_id: int, reply_bytes: int | None = None) -> None:
        """Remove a client from the round without recording a failure.

        If a subclass of the strategy dropped the client's reply, pass the size of the reply as ``reply_bytes``. Without
        ``reply_bytes``, also remove the client, and the bytes sent to it, from the record of the round.
        """
        if reply_bytes is None:
            self.note_sent(node_id, -self._sent_bytes[node_id])
            partition = self._federation.nodes.partition(node_id)
            del self.log.rates[partition]
            self.log.names.pop(partition, None)
        self.log.bytes_up += reply_bytes or 0
        del self.slices[node_id]
        self.needed = min(self.needed, len(self.slices))

    def _note_fault(self, node_id: int, fault: Fault) -> None:
        nodes = self._federation.nodes
        self._faults[node_id] = fault
        partition = nodes.record_failure(node_id, fault.reason, self.log.failures, self.log.names)
        if fault.kind in ("simulated", "unsent"):
            return
        rate = self.slices[node_id].rate
        logger.warning("round %d: %s at rate %g: %s", self.server_round, nodes.name(node_id), rate, fault.reason)
        if fault.kind == "rejected":
            self.log.refused = (*self.log.refused, partition)

    def close(self) -> State:
        """Complete the record of the round; return the new global state.

        Raise ``RoundError`` if too few clients gave a usable reply, or if all usable replies report 0 examples.
        """
        nodes = self._federation.nodes
        spared = [node_id for node_id in self.slices if node_id in self.silent and node_id not in self._faults]
        if len(self.answers) < self.needed:
            for node_id in spared:
                self._note_fault(node_id, Fault(SILENT, "silent"))
        else:
            self.log.spared = tuple(map(nodes.partition, spared))
        self.log.answered = len(self.answers)
        self.log.unsent = tuple(nodes.partition(node_id) for node_id in self.slices if node_id not in self._sent_bytes)
        nodes.note_in(self.log)
        nodes.failed |= {node_id for node_id, fault in self._faults.items() if fault.kind == "failed"}
        if late := [nodes.name(node_id) for node_id, fault in self._faults.items() if fault.kind == "late"]:
            self.log.notes = (*self.log.notes, f"one message late, restart its SuperNode: {listed(late)}")
        hints = failed_levels(self.slices, self._faults) if self.answers else {}
        self._check_replies(hints.values())
        for level, hint in hints.items():
            self.log.notes = (*self.log.notes, f"no client of level {level} could train")
            logger.warning("round %d: %s", self.server_round, hint)
        self.remarks.write()
        state = self._chain.close()
        self._count_replies()
        for node_id, capacity in self._capacities.items():
            nodes.set_capacity(node_id, capacity, self._federation.levels.largest_rate(self.server_round, node_id))
        self.log.stages = self._chain.metrics()
        if closed := self.log.stages.get("closed-fraction"):
            self.log.notes = (*self.log.notes, f"{closed:.0%} of the model stays closed (secure-sum)")
        by_level: dict[str, list[Answer]] = defaultdict(list)
        for node_id in sorted(self.answers, key=lambda node_id: -self.slices[node_id].rate):
            by_level[self.slices[node_id].level].append(self.answers[node_id])
        self.log.train = majority_means(list(self.answers.values()))
        self.log.train_by_level = {level: majority_means(answers) for level, answers in by_level.items()}
        return state

    def _count_replies(self) -> None:
        """If clients store state, record who has trained, for which clients this round's state counts, and their rates.

        If a stage skips the round, its replies count for personal parameters alone.
        """
        architecture, nodes = self._federation.architecture, self._federation.nodes
        if architecture.clients_keep and (architecture.personal or not self._chain.skipped):
            nodes.trained.update(node_id for node_id, (number, _) in self.answers.items() if number)
            rates = {node_id: self.slices[node_id].rate for node_id in self.answers}
            nodes.counted.update(dict.fromkeys(map(nodes.partition, rates), self.server_round))
            nodes.own_rates = {**rates, **nodes.own_rates}

    def _check_replies(self, hints: Iterable[str]) -> None:
        replies, min_replies = self._chain.replies, self._options.sampling.min_replies
        lost = sum(fault.kind in ("simulated", "unsent") for fault in self._faults.values())
        present = len(self.slices) - (lost if min_replies == "auto" else 0)
        # No error if all simulated devices failed by chance, or if a stage skips the round: the model stays the same.
        if (lost and not present) or self._chain.skipped:
            return
        least = replies  # if all replied, they are enough for any share
        if replies < self.needed or isinstance(min_replies, int):
            least = least_replies(min_replies, min(self.needed, present))
        if replies >= least:
            if self.answers and not any(number for number, _ in self.answers.values()):
                raise RoundError(
                    f"round {self.server_round}: all replies ({len(self.answers)}) report 0 examples, so their mean is "
                    f"empty: give reply the number of examples that a client trained on (num_examples)"
                )
            return
        faults = dict(zip(self.log.failed_names, self.log.failures.values(), strict=True))
        advice = MORE_TIME if {*faults.values()} <= {SILENT} else "correct the errors of the others"
        clients = counted(len(self.slices), "client")
        text = (
            f"round {self.server_round}: {replies} of {clients} gave a usable reply, expected at least {least}: "
            f"{advice}, or let rounds go on with fewer (min_replies or sample.min-replies, which is {min_replies})"
        )
        raise RoundError("; ".join(filter(None, [text, *hints, name_faults("", faults)])))
