"""Flower's four hooks over a federation: what the server sends, and what it makes of the replies."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import Strategy

from heterofl_flwr.common.errors import Fault, HeteroFLError, RoundError
from heterofl_flwr.core.moving_slices import window_number
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.federation.evaluation_round import EvaluationRound
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.options import build_chain
from heterofl_flwr.federation.records import Progress, RoundCallback, RoundRecord, check_callbacks, check_metrics
from heterofl_flwr.federation.round import Round, TrainReply
from heterofl_flwr.federation.sampling import Purpose
from heterofl_flwr.federation.summary import log_summary
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.stages.asynchronous import Asynchronous
from heterofl_flwr.stages.client_stage import Fields, State
from heterofl_flwr.stages.privacy import Spent
from heterofl_flwr.strategies.arrivals import Arrivals
from heterofl_flwr.strategies.budget import MOMENTS_SHARE, STAGES_SHARE, Budget
from heterofl_flwr.strategies.instructions import (
    Asking,
    Slices,
    client_config,
    instruction,
)
from heterofl_flwr.transport import messages, packing
from heterofl_flwr.transport.exchange import crosses_superlink, exchange, read_each

logger = logging.getLogger(__name__)

MetricsFn = Callable[[list[RecordDict], str], MetricRecord | None]
"""From the records of replies, and the key of their numbers of examples, to one record of metrics, or None."""


class FailedRound(RoundError, AggregationError):
    """A round that cannot go on, as Flower's own error: Flower ends the run as failed."""


@contextmanager
def as_flower_error() -> Iterator[None]:
    """Raise a ``RoundError`` as Flower's ``AggregationError`` too."""
    try:
        yield
    except RoundError as error:
        raise FailedRound(str(error)) from error


class FederationStrategy(Strategy):
    """A strategy over a federation; a subclass says by its arguments which.

    It owns what a run carries from round to round: the clients (``federation.nodes``), what the stages of the chain
    keep, the moments of the last evaluation. ``progress`` returns what is saved of it, and ``start`` goes on from it.
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
        self._train_metrics_fn, self._evaluate_metrics_fn = train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        self.callbacks = check_callbacks(callbacks)
        self._checkpoint_every = max((own.checkpoint_every for own in self.callbacks), default=1)
        self.spent = Spent(self.options.privacy)  # of all runs: what was given away stays so
        steps = self.options.asynchronous
        self.asynchronous = Asynchronous(steps) if steps.size else None  # what lasts from step to step
        self.chain = build_chain(
            self.options, self.spent, all_is_trained=federation.all_is_trained, asynchronous=self.asynchronous
        )
        self.num_rounds = 0  # the last round of the run; 0 if it is not known
        self.timeout = 3600.0
        self.budget: Budget | None = None  # of the round, while ``start`` runs
        self.reset()

    def reset(self) -> None:
        """Begin anew: forget the clients, the rounds, and what the stages keep."""
        self.federation.reset()
        self.chain.load({})
        self.log = RoundRecord(server_round=0, seconds=0.0, learning_rate=0.0, rates={})  # of the current round
        self.moments: dict[float, Moments] = {}  # of the last evaluation, by rate
        self._have_moments: bool | None = None  # whether clients have any, once that is known
        self.current: Round | EvaluationRound | None = None  # what was configured and is not aggregated yet
        self._silent: set[int] = set()  # the clients that did not answer in time when they were to train in this round
        self._sent: list[Message] = []
        self._replied: dict[int, RecordDict] = {}
        self._heard: set[str] = set()  # the messages to which the grid brought replies
        self._grid: tuple[Grid | None, bool] = None, False  # the last one that was seen, and whether it is remote

    def progress(self, state: State) -> Progress:
        """Return where the run stands after this round, of which ``state`` is the global model."""
        return Progress(
            server_round=self.log.server_round,
            state=state,
            stages=self.chain.state(),
            moments=packing.moment_tensors(self.moments),
            run_key=self.federation.run_key,
            trained=self.federation.nodes.have_trained() if self.federation.clients_keep else (),
            dealt=self.federation.nodes.dealt(),
            record=self.log,
            evaluated=self.chain.evaluated(state),
            num_rounds=self.num_rounds,
            evaluated_slice=self.federation.evaluated_slice,
        )

    def summary(self) -> None:
        """Log what this strategy will do."""
        log_summary(self.federation)

    def evaluated_arrays(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the parameters that are evaluated and kept, from those that are trained; mostly the same."""
        state = packing.read_tensors(arrays)
        found = self.chain.evaluated(state)
        return arrays if found is state else ArrayRecord(found)

    @as_flower_error()
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return a message for each client of the round, with its slice and its rate."""
        messages.check_own_keys(config)
        slices, remote = Slices(self.federation, arrays), self.is_remote(grid)
        nodes, drawn = self.draw_nodes(grid, server_round, "train")
        current = Round(self.federation, self.chain, server_round, nodes, slices.state, remote=remote, drawn=drawn)
        self.open(current)
        asking = Asking(grid, server_round, self.chain.instruction(), lambda: self.seconds_left(STAGES_SHARE))
        told = asking.converse(current.before())
        for node_id, own in current.slices.items():
            if node_id not in told:
                unusable = Fault("its answer to what was asked before training is not usable", "rejected")
                fault = Fault(self.chain.excluded[node_id], "rejected") if node_id in self.chain.excluded else unusable
                current.refuse(node_id, asking.faults.get(node_id, fault))
                continue
            current.note_sent(node_id, self.sent_bytes(slices, own.plan))
            self._sent.append(self.train_message(node_id, slices, config, told[node_id]))
        # Flower may go through what it gets more than once, so this is a list, and not the one kept here.
        return list(self._sent)

    def draw_nodes(self, grid: Grid, server_round: int, purpose: Purpose) -> tuple[list[int], list[int]]:
        """Return the nodes that can be drawn, once there are enough, and those that take part in the round."""
        federation, budget = self.federation, self.budget or Budget(self.timeout)
        arrivals = Arrivals(grid, federation, server_round, budget)
        nodes = arrivals.wait()
        if purpose == "train":
            nodes = federation.trainable_nodes(nodes)
        drawn = federation.sample(server_round, nodes, purpose)
        if not federation.asks_all:
            drawn = sorted(filter(federation.can_train, arrivals.ask(drawn)), key=federation.nodes.partition)
        arrivals.log_changes()
        return nodes, drawn

    def open(self, current: Round) -> None:
        """Begin a round, or a step where rounds do not wait."""
        self.current, self.log, self._silent, self._sent, self._replied = current, current.log, current.silent, [], {}

    def train_message(self, node_id: int, slices: Slices, config: ConfigRecord, told: Fields) -> Message:
        """Return the instruction to a client of the open round; ``told`` is what stages say beside."""
        current = self.open_round()
        own = current.slices[node_id]
        full = {**config, **self._train_config(current.server_round, node_id, own.rate), **told}
        message = instruction(self.train_kind, node_id, slices.record(own.plan), full)
        if self.chain.broadcast:
            message.content[messages.BROADCAST] = slices.broadcast(own.plan, self.chain.broadcast)
        return message

    def sent_bytes(self, slices: Slices, plan: Plan) -> int:
        """Return the bytes of the tensors in an instruction to train."""
        broadcast = [slices.broadcast(plan, self.chain.broadcast)] if self.chain.broadcast else []
        return sum(map(packing.count_bytes, (slices.record(plan), *broadcast)))

    def _train_config(self, server_round: int, node_id: int, rate: float) -> dict[str, object]:
        """Return what a client needs to know to train."""
        told = client_config(self.federation, server_round, node_id, rate, self._checkpoint_every)
        return {**told, messages.RATES: self.federation.rates_inside(rate), **self.chain.instruction()}

    def exchange(self, grid: Grid, sent: list[Message], timeout: float) -> Iterable[Message]:
        """Send the messages of ``configure_train`` and return the replies; with ``spare``, as soon as enough came."""
        if self.options.sampling.spare and isinstance(self.current, Round):
            return exchange(grid, sent, timeout=timeout, enough=self.current.needed, in_order=False)
        return grid.send_and_receive(sent, timeout=timeout)

    @as_flower_error()
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the replies one by one, in the order of the messages, and return the new global model."""
        current = self.open_round()
        self._read_each(current, replies, self.add_reply)
        if self.chain.summing and self._grid[0] is not None:
            asking = Asking(
                self._grid[0], server_round, self.chain.instruction(), lambda: self.seconds_left(MOMENTS_SHARE)
            )
            before = self.chain.excluded
            asking.converse(self.chain.after())
            for node_id in self.chain.excluded.keys() - before.keys():
                current.refuse(node_id, Fault(self.chain.excluded[node_id], "rejected"))
        return self.close_round()

    def add_reply(self, node_id: int, reply: Message) -> None:
        """Add what a client has trained to the open round."""
        current = self.open_round()
        current.add(node_id, self._read_train_reply(node_id, reply, current))
        self._keep_records(self._train_metrics_fn, node_id, reply)

    def close_round(self) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new global model, and the metrics of those who trained it."""
        current, function = self.open_round(), self._train_metrics_fn
        new = current.close()
        self.current = None
        return packing.move_to_record(new), self._aggregated(function, current.answers, self.log.train)

    def open_round(self) -> Round:
        """Return the round that is open; fail if none was configured."""
        if not isinstance(self.current, Round):
            raise RoundError("the round was not configured: call configure_train (configure_fit) before aggregating")
        return self.current

    def _read_train_reply(self, node_id: int, reply: Message, current: Round) -> TrainReply:
        """Return what a reply holds; refuse it if anything is missing or of another type."""
        plan, most = current.slices[node_id].plan, self.options.limits.examples
        return packing.read_train_reply(reply, plan, most, f"node {node_id}")

    @as_flower_error()
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return a message for each client that evaluates, with the model and its static batch norm moments."""
        self._sent, self._replied, self.current = [], {}, None
        evaluation, federation, mix = self.options.evaluation, self.federation, self.federation.mix
        if not self.options.sampling.fraction_evaluate or not evaluation.due(server_round, self.num_rounds):
            return []
        messages.check_own_keys(config)
        nodes, drawn = self.draw_nodes(grid, server_round, "evaluate")
        self.current = current = EvaluationRound(
            federation, self.log, server_round, nodes, drawn=drawn, num_rounds=self.num_rounds, silent=self._silent
        )
        rule, window = federation.evaluated_rule, window_number(server_round, self.options.transfer.roll_by)
        asked = {} if rule == "prefix" else {messages.SLICE_RULE: rule, messages.WINDOW: window}
        slices = Slices(federation, self.evaluated_arrays(arrays))

        def ask(kind: str, node_id: int, more: Mapping[str, object]) -> Message:
            rates = current.rates[node_id]
            told = client_config(federation, server_round, node_id, rates[0], self._checkpoint_every)
            full = {**config, **told, **more}
            full |= asked if rates[0] == mix.global_rate else {}
            record = slices.record(federation.plan(rates[0]))
            return instruction(kind, node_id, record, {**full, messages.RATES: list(rates)})

        self._collect_moments(current, grid, ask)

        @cache
        def pack(rates: tuple[float, ...]) -> ArrayRecord:
            return packing.pack_moments({rate: self.moments[rate] for rate in rates})

        for node_id, rates in current.rates.items():
            message = ask(MessageType.EVALUATE, node_id, {})
            if self.moments:
                message.content[messages.MOMENTS] = pack(rates)
            self._sent.append(message)
        return list(self._sent)

    def is_remote(self, grid: Grid) -> bool:
        """Whether clients are on other machines; each grid is looked at once."""
        if self._grid[0] is not grid:
            self._grid = grid, crosses_superlink(grid)
        return self._grid[1]

    def _collect_moments(
        self, current: EvaluationRound, grid: Grid, ask: Callable[[str, int, Mapping[str, object]], Message]
    ) -> None:
        """Query for static batch norm moments if they are needed, unless all clients have said that they have none."""
        self.moments, norms = {}, current.open_moments(remote=self.is_remote(grid))
        if not norms or self._have_moments is False:
            return
        kind = {messages.MOMENTS_KIND: self.federation.fidelity.moments}
        sent = [ask(messages.QUERY_MOMENTS, node_id, kind) for node_id in norms]

        def read(node_id: int, reply: Message) -> None:
            # All are read before any is added, so an answer that does not fit changes nothing.
            current.add_moments(packing.read_moments(reply, norms[node_id], f"node {node_id}"))

        replies = grid.send_and_receive(sent, timeout=self.seconds_left(MOMENTS_SHARE))
        replies = self.hear(replies, "sent moments", len(sent))
        for node_id, fault in read_each(sent, replies, read, HeteroFLError):
            if fault is not None:
                current.refuse_moments(node_id, fault)
        self.moments = current.close_moments(self.spent, needed=self._have_moments is None)
        self._have_moments = self._have_moments or bool(self.moments)

    @as_flower_error()
    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the means over the clients, weighted by examples, and the accuracy of the worst client."""
        current, function = self.current, self._evaluate_metrics_fn
        if not isinstance(current, EvaluationRound):
            return None

        def read(node_id: int, reply: Message) -> None:
            current.answers[node_id] = packing.read_metrics(reply, self.options.limits.examples, f"node {node_id}")
            self._keep_records(function, node_id, reply)

        self._read_each(current, replies, read)
        self.current = None
        current.close()
        return self._aggregated(function, current.whole_answers(), self.log.evaluate) if current.answers else None

    def seconds_left(self, share: float = 1.0) -> float:
        """Return a share of the seconds that are left of the round; without ``start``, all that a round has."""
        return self.timeout if self.budget is None else self.budget.left(share)

    def open_exchange(self, sent: Sequence[Message]) -> None:
        """Leave out of the round whom a subclass sends nothing of what ``configure_train`` or the like returned."""
        self._heard = set()
        asked = {message.metadata.dst_node_id for message in sent}
        for message in self._sent:
            if self.current is not None and message.metadata.dst_node_id not in asked:
                self.current.leave_out(message.metadata.dst_node_id)
        self._sent = [message for message in self._sent if message.metadata.dst_node_id in asked]

    def hear(self, replies: Iterable[Message], what: str, asked: int) -> Iterator[Message]:
        """Yield the replies of a grid, noting which there were: a subclass may drop some of them."""
        done = 0
        for reply in replies:
            self._heard.add(reply.metadata.reply_to_message_id)
            done += 1  # noqa: SIM113 - enumerate would keep the reply
            for callback in self.callbacks:
                callback.on_reply(what, done, asked)
            yield reply
            del reply  # the consumer alone decides how long a reply lives

    def _read_each(
        self, current: Round | EvaluationRound, replies: Iterable[Message], read: Callable[[int, Message], None]
    ) -> None:
        """Read the replies and note faults; a client whose reply a subclass dropped has none, and is left out."""
        asked = {message.metadata.dst_node_id: message.metadata for message in self._sent}
        for node_id, fault in read_each(self._sent, replies, read):
            if fault is None:
                continue
            if fault.kind == "silent" and asked[node_id].message_id in self._heard:
                current.leave_out(node_id)
            else:
                current.refuse(node_id, fault)
        self._sent = []

    def _keep_records(self, function: MetricsFn | None, node_id: int, reply: Message) -> None:
        """Keep what a metrics function is to see of a reply: all records but those of parameters."""
        if function is not None:
            self._replied[node_id] = RecordDict(
                {name: own for name, own in reply.content.items() if not isinstance(own, ArrayRecord)}
            )

    def _aggregated(
        self, function: MetricsFn | None, node_ids: Collection[int], means: dict[str, float]
    ) -> MetricRecord | None:
        """Return what a metrics function computes from some clients' replies, and note it; without one, the means."""
        if function is None or not node_ids:
            return MetricRecord(dict(means))
        found = function([self._replied[node_id] for node_id in node_ids], messages.NUM_EXAMPLES)
        check_metrics(found, "a metrics_aggr_fn")
        if found is not None:
            self.log.note_computed(means, found)
        return found
