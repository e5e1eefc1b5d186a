"""Flower's hooks of evaluation: ``configure_evaluate`` and ``aggregate_evaluate``."""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import HeteroFLError, RoundError
from heterofl_flwr.core.slice_rules import window_number
from heterofl_flwr.federation.collect_moments import CollectedMoments
from heterofl_flwr.federation.evaluation_round import EvaluationRound
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.nn.moments import MomentsByRate
from heterofl_flwr.strategies.node_registration import NodeRegistration
from heterofl_flwr.strategies.round_messages import RoundMessages, read_each
from heterofl_flwr.strategies.time_budget import MOMENTS_SHARE
from heterofl_flwr.strategies.train_hooks import RoundHooks, as_flower_error
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.arrays import pack_moments
from heterofl_flwr.transport.messages import client_config, instruction
from heterofl_flwr.transport.slices import Slices

logger = logging.getLogger(__name__)


class EvaluationHooks(RoundHooks):
    """Base class of strategies: Flower's two hooks of evaluation."""

    @as_flower_error()
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Collect moments; return an evaluation message for each sampled client, or [] in rounds without evaluation."""
        evaluation, federation = self.options.evaluation, self.federation
        if not self.options.sampling.fraction_evaluate or not evaluation.due(server_round, self.num_rounds):
            return []
        messages.check_own_keys(config)
        opened, nodes = self.messages_of(server_round), federation.nodes
        before = nodes.notes()
        _, sampled = NodeRegistration(grid, federation, server_round, opened.budget).sample("evaluate")
        if self.log.server_round != server_round:  # a subclass has left out the training of this round
            self.log = RoundRecord.empty(server_round)
        nodes.note_in(self.log, before)
        current = EvaluationRound(
            federation, self.log, server_round, sampled, num_rounds=self.num_rounds, silent=opened.silent
        )
        opened.open(current)
        slices = Slices(federation.architecture, self.evaluated_arrays(arrays), self.chain.level_tensors)
        make_message = partial(self._evaluate_message, current, slices, config)
        self._collect_moments(opened, current, grid, make_message)

        @cache
        def moments(rates: tuple[float, ...]) -> ArrayRecord:
            return pack_moments({rate: self.moments[rate] for rate in rates})

        for node_id, rates in current.rates.items():
            message = make_message(MessageType.EVALUATE, node_id)
            if self.moments:
                message.content[messages.MOMENTS] = moments(rates)
            opened.sent.append(message)
        return list(opened.sent)

    def _evaluate_message(
        self,
        current: EvaluationRound,
        slices: Slices,
        config: ConfigRecord,
        kind: str,
        node_id: int,
        extra: Mapping[str, object] = {},
    ) -> Message:
        """Return a client's message of type ``kind``: the model of its largest rate, and the config with ``extra``."""
        federation, slicing, rates = self.federation, self.options.slicing, current.rates[node_id]
        client = client_config(federation, current.server_round, node_id, rates[0], self.callbacks)
        full_config = {**config, **client, **extra, messages.RATES: list(rates)}
        if rates[0] == federation.mix.global_rate and federation.evaluated_rule != "prefix":
            full_config[messages.SLICE_RULE] = federation.evaluated_rule
            full_config[messages.WINDOW] = window_number(current.server_round, slicing.roll_by)
        record = slices.level_arrays(federation.architecture.plan(rates[0]), rates[0])
        message = instruction(kind, node_id, record, full_config)
        if slicing.by_level and len(rates) > 1:
            message.content[messages.LEVELS] = slices.level_parameters(rates[1:])
        return message

    def _collect_moments(
        self,
        opened: RoundMessages,
        current: EvaluationRound,
        grid: Grid,
        make_message: Callable[[str, int, Mapping[str, object]], Message],
    ) -> None:
        """Query clients for batch norm moments, and store the result in ``moments``.

        No client is queried if the run needs no moments, or if an earlier query has shown that no client has any.
        """
        collected = CollectedMoments(self.federation, current.rates, remote=self.is_remote(grid))
        self.moments, norms = MomentsByRate(), collected.norms
        if not norms or self._have_moments is False:
            return
        kind = {messages.MOMENTS_KIND: self.options.averaging.fidelity.moments}
        sent = [make_message(messages.QUERY_MOMENTS, node_id, kind) for node_id in norms]

        def read(node_id: int, reply: Message) -> None:
            # Moments of all rates are read before any is added, so an invalid answer adds nothing.
            collected.add(reading.read_moments(reply, norms[node_id], self.federation.nodes.name(node_id)))

        replies = grid.send_and_receive(sent, timeout=opened.budget.remaining(MOMENTS_SHARE))
        replies = opened.watch(replies, "sent moments", len(sent), self.callbacks)
        for node_id, fault in read_each(sent, replies, read, HeteroFLError):
            if fault is not None:
                collected.refuse(node_id, fault)
                current.refuse_moments(node_id, fault)
        self.moments = MomentsByRate(collected.result(self.spent, self.log, needed=self._have_moments is None))
        if collected.faults or self.moments:
            current.restrict_rates(self.moments)
        if self.moments or (self._have_moments is None and not collected.faults):
            self._have_moments = bool(self.moments)

    @as_flower_error()
    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the metrics of the global model, or None without answers.

        By default, these are the clients' metrics as means weighted by examples; the accuracy of the worst client; and
        the coverage.
        """
        opened, current = self.round_messages, self.current
        if not isinstance(current, EvaluationRound):
            if any(True for _ in replies):
                raise RoundError(
                    "no evaluation of this round was configured: let an overridden configure_evaluate call "
                    "super().configure_evaluate"
                )
            return None

        def read(node_id: int, reply: Message) -> None:
            sender = self.federation.nodes.name(node_id)
            current.answers[node_id] = reading.read_metrics(reply, self.options.limits.examples, sender)
            self._evaluate_metrics.keep(node_id, reply)

        opened.read(current, replies, read)
        current.close()
        opened.current = None
        if not current.answers:
            return None
        node_ids = current.global_answers()
        metrics = self._evaluate_metrics.aggregate(node_ids, self.log, self.log.evaluate)
        if any(current.answers[node_id][0] for node_id in node_ids) and not self.log.evaluate.keys() - {"coverage"}:
            logger.warning(
                "round %d: the clients that evaluated the full model reported no number that measures it: let evaluate "
                "reply with some, such as metrics={'local-accuracy': 0.9}",
                server_round,
            )
        return metrics
