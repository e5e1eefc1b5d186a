"""Flower's hooks of training: ``configure_train`` and ``aggregate_train``."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import Strategy

from heterofl_flwr.common.errors import ConfigError, Fault, RoundError
from heterofl_flwr.federation.callbacks import RoundCallback, check_callbacks
from heterofl_flwr.federation.evaluation_round import EvaluationRound
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.options import build_chain
from heterofl_flwr.federation.round import Round
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.nn.moments import MomentsByRate
from heterofl_flwr.stages.asynchronous import Asynchronous
from heterofl_flwr.stages.client_stage import Fields, State, TrainReply
from heterofl_flwr.stages.privacy_accountant import Spent
from heterofl_flwr.strategies.metrics_function import MetricsFn, MetricsFunction
from heterofl_flwr.strategies.node_registration import NodeRegistration
from heterofl_flwr.strategies.round_messages import RoundMessages
from heterofl_flwr.strategies.stage_queries import StageQueries
from heterofl_flwr.strategies.time_budget import MOMENTS_SHARE, STAGES_SHARE
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.arrays import content_bytes, pack_tensors, read_tensors
from heterofl_flwr.transport.messages import client_config, instruction
from heterofl_flwr.transport.relay import crosses_superlink
from heterofl_flwr.transport.slices import Slices

logger = logging.getLogger(__name__)


class FailedRound(RoundError, AggregationError):
    """A ``RoundError`` that is also Flower's ``AggregationError``, so that Flower ends the run."""


@contextmanager
def as_flower_error() -> Iterator[None]:
    """Within this context, turn a ``RoundError`` into a ``FailedRound``."""
    try:
        yield
    except RoundError as error:
        raise FailedRound(str(error)).with_traceback(error.__traceback__) from None  # the log has it once


class RoundHooks(Strategy):
    """Base class of strategies: ``configure_train``, ``aggregate_train`` and the state of a run.

    Attributes
    ----------
    federation, options
        The federation and its options.
    chain
        The stages that run before and after the averaging of replies, with their state.
    moments
        Batch norm moments of the latest evaluation, by rate.
    log
        The record of the current round.
    round_messages
        The messages of the current round; empty between rounds.
    """

    train_kind: ClassVar[str] = MessageType.TRAIN

    def __init__(
        self,
        federation: Federation,
        train_metrics_aggr_fn: MetricsFn | None,
        evaluate_metrics_aggr_fn: MetricsFn | None,
        callbacks: Sequence[RoundCallback],
    ) -> None:
        self.federation, self.options = federation, federation.options
        self._train_metrics = MetricsFunction("train_metrics_aggr_fn", train_metrics_aggr_fn)
        self._evaluate_metrics = MetricsFunction("evaluate_metrics_aggr_fn", evaluate_metrics_aggr_fn)
        self.callbacks, self._schedule = check_callbacks(callbacks), self.options.training.schedule
        self.spent = Spent(self.options.privacy)  # for all runs of this strategy: a release cannot be undone
        buffered = self.options.asynchronous
        self.asynchronous = Asynchronous(buffered) if buffered.size else None
        trains_all = federation.architecture.trains_all
        self.chain = build_chain(self.options, self.spent, all_is_trained=trains_all, asynchronous=self.asynchronous)
        self.num_rounds = 0  # number of the final round; 0 if unknown
        self.timeout = 3600.0
        self.reset()

    def reset(self) -> None:
        """Begin a new run: forget the registered clients, the records and the state of stages."""
        self.federation.reset()
        self.chain.load({})
        self.log = RoundRecord.empty(0)
        self.moments = MomentsByRate()
        self._train_metrics.reset()
        self._evaluate_metrics.reset()
        self._have_moments: bool | None = None  # None until a query has shown whether clients have moments
        self.round_messages = RoundMessages(0, self.timeout)
        self._grid: tuple[Grid | None, bool] = None, False  # the grid of the latest round, and whether it is remote

    def evaluated_arrays(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the parameters to evaluate and save: ``arrays``, unless a stage (``MovingAverage``) replaces them."""
        state = read_tensors(arrays)
        evaluated = self.chain.evaluated(state)
        return arrays if evaluated is state else pack_tensors(evaluated)

    @property
    def current(self) -> Round | EvaluationRound | None:
        """The open training or evaluation round, or None."""
        return self.round_messages.current

    def open_round(self) -> Round:
        """Return the open training round; raise ``RoundError`` if there is none."""
        if not isinstance(self.current, Round):
            raise RoundError("the round was not configured: call configure_train (configure_fit) before aggregating")
        return self.current

    def new_round(
        self,
        server_round: int,
        node_ids: Sequence[int],
        state: State,
        config: ConfigRecord,
        grid: Grid,
        sampled: Sequence[int],
    ) -> Round:
        """Open a training round, or a step of asynchronous training."""
        current = Round(
            self.federation,
            self.chain,
            server_round,
            node_ids,
            state,
            sampled,
            learning_rate=self._learning_rate(server_round, config),
            remote=self.is_remote(grid),
        )
        self.log = current.log
        self.messages_of(server_round).open(current)
        return current

    def check_train_config(self, config: ConfigRecord) -> None:
        """Raise ``ConfigError`` if a user's config for training contains keys that the server sends."""
        training = self.options.training
        sent = {messages.LEARNING_RATE: training.learning_rate, messages.PROXIMAL_MU: training.proximal_mu or None}
        keys = (key for key, value in sent.items() if value is not None)
        messages.check_own_keys(config, messages.RESERVED.union(keys))

    def _learning_rate(self, server_round: int, config: ConfigRecord) -> float:
        """Return the learning rate of the schedule, or else ``lr`` in ``config``; 0 without either."""
        if self._schedule is None:
            rate = config.get(messages.LEARNING_RATE)
            return float(rate) if isinstance(rate, int | float) else 0.0
        value = self._schedule(server_round)
        if not isinstance(value, Real) or not 0 <= value < math.inf:
            raise ConfigError(f"learning_rate({server_round}) returned {value!r}; expected a number of 0 or more")
        return float(value)

    def messages_of(self, server_round: int, *, timed: bool = False) -> RoundMessages:
        """Return the current ``RoundMessages``; if they are of another round, first replace them by new ones.

        ``timed`` has an effect only on new ones: if True, all exchanges of the round share one time limit.
        """
        if self.round_messages.server_round != server_round:
            self.round_messages = RoundMessages(server_round, self.timeout, timed=timed)
        return self.round_messages

    def end_round(self) -> None:
        """Drop the messages of the current round."""
        self.round_messages = RoundMessages(0, self.timeout)

    def is_remote(self, grid: Grid) -> bool:
        """Whether the clients of ``grid`` are on other machines."""
        if self._grid[0] is not grid:
            self._grid = grid, crosses_superlink(grid)
        return self._grid[1]

    @as_flower_error()
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return a training message with slice and rate for each sampled client."""
        self.check_train_config(config)
        arrays = self._sort_channels(server_round, arrays)
        slices = Slices(self.federation.architecture, arrays, self.chain.level_tensors)
        opened = self.messages_of(server_round)
        node_ids, sampled = NodeRegistration(grid, self.federation, server_round, opened.budget).sample("train")
        current = self.new_round(server_round, node_ids, slices.state, config, grid, sampled)
        stage_configs: dict[int, Fields] = {node_id: {} for node_id in current.slices}
        if self.chain.summing:
            stage_configs = self._ask_before(grid, opened, current)
        for node_id, stage_config in stage_configs.items():
            message = self.train_message(current, node_id, slices, config, stage_config)
            current.note_sent(node_id, content_bytes(message.content))
            opened.sent.append(message)
        # Flower may iterate the result more than once, and this object keeps its own list.
        return list(opened.sent)

    def _ask_before(self, grid: Grid, opened: RoundMessages, current: Round) -> dict[int, Fields]:
        """Run the stages' queries before training; return extra config entries by client.

        A client is refused if a stage excludes it, or if its answer is missing or unusable. If a stage skips the round,
        all other clients are left out.
        """
        queries = self._queries_of_stages(grid, opened, STAGES_SHARE)
        configs = queries.converse(current.before())
        excluded = {node_id: Fault(reason, "rejected") for node_id, reason in self.chain.excluded.items()}
        faults = {**excluded, **queries.faults}
        unusable = Fault("its answer to what was asked before training is not usable", "rejected")
        for node_id in [node_id for node_id in current.slices if node_id not in configs]:
            if self.chain.skipped and node_id not in faults:
                current.leave_out(node_id)
            else:
                current.refuse(node_id, faults.get(node_id, unusable))
        current.needed = max(current.needed, self.chain.fewest_replies)
        return {node_id: configs[node_id] for node_id in current.slices if node_id in configs}

    def _queries_of_stages(self, grid: Grid, opened: RoundMessages, share: float) -> StageQueries:
        nodes, config = self.federation.nodes, self.chain.instruction
        return StageQueries(grid, nodes, opened.server_round, config, lambda: opened.budget.remaining(share))

    def _sort_channels(self, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
        channel_order = self.federation.architecture.channel_order
        if channel_order is None or (server_round - 1) % self.options.slicing.rank_every:
            return arrays
        state = self.federation.architecture.check_state(read_tensors(arrays))
        if (order := channel_order.find(state)) is None:
            return arrays
        apply = partial(channel_order.apply, order)
        self.chain.reorder(apply, {name: tensor.shape for name, tensor in state.items()})
        self.moments = MomentsByRate()  # their channels have the earlier order
        return pack_tensors({name: apply(name, tensor) for name, tensor in state.items()})

    def train_message(
        self, current: Round, node_id: int, slices: Slices, config: ConfigRecord, stage_config: Fields
    ) -> Message:
        """Return a client's training message: its slice, its config and the tensors that stages send."""
        sampled = current.slices[node_id]
        client = self._train_config(current, node_id, sampled.rate)
        full_config = {**config, **client, **stage_config}
        message = instruction(self.train_kind, node_id, slices.level_arrays(sampled.plan, sampled.rate), full_config)
        if self.chain.broadcast:
            message.content[messages.BROADCAST] = slices.broadcast(sampled.plan, self.chain.broadcast)
        return message

    def _train_config(self, current: Round, node_id: int, rate: float) -> dict[str, object]:
        config = client_config(self.federation, current.server_round, node_id, rate, self.callbacks)
        if self.options.training.learning_rate is not None:
            config[messages.LEARNING_RATE] = current.log.learning_rate
        if self.options.slicing.growth:
            config[messages.ASSIGNED_RATE] = self.federation.levels.assigned_rate(current.server_round, node_id)
        nested = self.federation.architecture.nested_rates(rate)
        return {**config, messages.RATES: nested, **self.chain.instruction}

    @as_flower_error()
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new global model and the training metrics. Replies are added in the order of the messages."""
        current = self.open_round()
        opened = self.messages_of(server_round)
        opened.read(current, replies, self.add_reply)
        if self.chain.summing and self._grid[0] is not None:
            queries = self._queries_of_stages(self._grid[0], opened, MOMENTS_SHARE)
            before = self.chain.excluded
            queries.converse(self.chain.after())
            for node_id in self.chain.excluded.keys() - before.keys():
                current.refuse(node_id, Fault(self.chain.excluded[node_id], "rejected"))
        return self.close_round()

    def add_reply(self, node_id: int, reply: Message) -> None:
        """Read a client's training reply, and add it to the open round."""
        current = self.open_round()
        current.add(node_id, self._read_train_reply(node_id, reply, current))
        self._train_metrics.keep(node_id, reply)

    def _read_train_reply(self, node_id: int, reply: Message, current: Round) -> TrainReply:
        plan, most = current.slices[node_id].plan, self.options.limits.examples
        return reading.read_train_reply(reply, plan, most, self.federation.nodes.name(node_id))

    def close_round(self) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round; return the new global model and the training metrics."""
        current = self.open_round()
        state = current.close()
        metrics = self._train_metrics.aggregate(current.answers, self.log, self.log.train)
        self.round_messages.current = None
        return pack_tensors(state), metrics
