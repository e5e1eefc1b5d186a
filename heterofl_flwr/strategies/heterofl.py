"""HeteroFL as a strategy of Flower's Message API."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from heterofl_flwr import messages as wire
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.arrivals import QUERY_SECONDS
from heterofl_flwr.grids.guarded import crosses_superlink, guard
from heterofl_flwr.messages import size_of
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import batch_norms
from heterofl_flwr.strategies.base import HeteroFLBase
from heterofl_flwr.strategies.evaluators import ADD_EVALUATE, ADD_MOMENTS
from heterofl_flwr.strategies.flower_names import MetricsFn
from heterofl_flwr.strategies.instructions import EvaluationRound, first_replies, instruction, slices_of
from heterofl_flwr.strategies.queries import Queries, gather_nodes, query_moments
from heterofl_flwr.strategies.replies import lacks_handler, read_each, read_metrics, read_train_reply
from heterofl_flwr.strategies.rounds import EvaluateFn, Rounds, run_rounds

BESIDE_BYTES = 1 << 20
"""Of a reply, for all that is not parameters: metrics, labels, moments."""

NAME_BYTES = 2048
"""Of a reply, for each parameter: its name, its shape, how Flower packs it."""

logger = logging.getLogger(__name__)


class HeteroFL(HeteroFLBase, Strategy):
    """Train one global model over clients of unequal size.

    The parameters are those of ``HeteroFLBase``; the client side is in ``heterofl_flwr.client``.

    Examples
    --------
    ::

        strategy = HeteroFL(build, mix="a1-b1-c1-d1-e1", fraction_train=0.1)
        result = strategy.start(grid, num_rounds=20)
    """

    _timeout = 3600.0
    _sent: list[Message] = []  # noqa: RUF012 - replaced, never changed

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self._records: dict[int, RecordDict] = {}

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        first_round: int = 1,
    ) -> Result:
        """Run the rounds; as Flower's own ``start``, with two additions.

        ``initial_arrays`` default to a freshly built global model. A run that stopped goes on with
        ``first_round=k``, the arrays it had after round k - 1, and ``federation.optimizer_state`` where it has a
        server optimiser. One that has done all rounds has nothing left to do but to tell its callbacks.
        From round 1 a strategy begins anew, even if it ran before. As all evaluation, ``evaluate_fn`` is called every
        ``evaluation.every`` rounds; it also sees the initial arrays, as round 0. With ``shared`` it gets the shared
        parameters alone, from round 1 on whatever the initial arrays hold: the others are each client's own. Load them
        with ``strict=False``, or let the clients evaluate, each of which has a whole model.
        """
        if not 1 <= first_round <= num_rounds + 1:
            raise ConfigError(f"first_round is {first_round}; expected 1 to one after the last round, {num_rounds}")
        self.summary()
        self._num_rounds, self._timeout = num_rounds, timeout
        if first_round == 1:
            self.federation.forget()
            self._begin_anew()
        if initial_arrays is None:
            initial_arrays = wire.record_of(self.federation.initial_state())
        result = Result(arrays=initial_arrays)
        del initial_arrays  # else this frame would keep them to the end of the run
        rounds = Rounds(
            first_round=first_round,
            num_rounds=num_rounds,
            timeout=timeout,
            train_config=train_config or ConfigRecord(),
            evaluate_config=evaluate_config or ConfigRecord(),
            evaluate_fn=evaluate_fn,
        )
        run_rounds(self, guard(grid, self._largest_reply), result, rounds)
        return result

    def _largest_reply(self, message: Message) -> int:
        """Return how many bytes the reply to a message may have: its sender's slice, and what is said beside it."""
        training = message.metadata.message_type.startswith(MessageType.TRAIN)
        own = self._plans.get(message.metadata.dst_node_id) if training else None
        plan = own or self.federation.plan(self.federation.mix.global_rate)
        entry = max((own.element_size() for own in self.federation.model.parameters()), default=0)
        return plan.parameters * entry + len(plan.axes) * NAME_BYTES + BESIDE_BYTES

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return a message for each client of the round, with its slice and its rate."""
        state = self.federation.check_state(wire.tensors_of(arrays, "the server"))
        rates = self._begin(server_round, self._available(grid), state)
        slices = slices_of(self.federation, arrays, state, self._plans.values())
        for node_id, plan in self._plans.items():
            self.log.send(rates[node_id], size_of(slices[plan]))
        self._sent = [
            instruction(
                MessageType.TRAIN,
                node_id,
                slices[self._plans[node_id]],
                {**config, **self._form, **self._bound, **self._told(server_round, node_id, rate)},
            )
            for node_id, rate in rates.items()
        ]
        self.keys.put_on(self._sent)
        # Flower may go through what it gets more than once, so this is a list, and not the one kept here.
        return list(self._sent)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the replies one by one, in the order of the messages, and return the new global model."""
        read_each(
            self._sent,
            replies,
            self._read_trained,
            partial(self._refuse, server_round),
        )
        self._sent = []
        new = self._finish(server_round)
        return wire.record_of(new), self._aggregated(self.train_metrics_aggr_fn, self._answers, self.log.train)

    def _read_trained(self, node_id: int, reply: Message) -> None:
        plan, sender = self._plan_as_sent(node_id), f"node {node_id}"
        self._take(node_id, read_train_reply(reply, plan, self.limits, sender, self.keys.weighted_by_key))
        self._keep_records(self.train_metrics_aggr_fn, node_id, reply)

    def _plan_as_sent(self, node_id: int) -> Plan:
        """Return a client's plan, with the names that parameters have in messages."""
        return self._plans[node_id]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return a message for each client that evaluates, with the model and its static batch norm moments."""
        self._sent = []
        if not self.fraction_evaluate or not self.evaluation.due(server_round, self._num_rounds):
            return []
        rates_of = self._evaluators(server_round, self._available(grid))
        told = {
            node_id: {**config, **self._told(server_round, node_id, rates[0])} for node_id, rates in rates_of.items()
        }
        self._sent = self._ask(server_round, grid, arrays, rates_of, told)
        self.keys.put_on(self._sent)
        return list(self._sent)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the means over the clients, weighted by examples, and the accuracy of the worst client."""
        answers: dict[int, tuple[int, Mapping[str, float]]] = {}
        lacking: set[int] = set()

        def read(node_id: int, reply: Message) -> None:
            answers[node_id] = read_metrics(reply, self.limits, f"node {node_id}", self.keys.weighted_by_key)
            self._keep_records(self.evaluate_metrics_aggr_fn, node_id, reply)

        def refuse(node_id: int, fault: str, came: bool) -> None:
            del came
            if lacks_handler(fault):
                lacking.add(node_id)
            else:
                self._refuse_evaluation(server_round, node_id, fault)

        read_each(self._sent, replies, read, refuse)
        self._note_no_handler(self._no_evaluate, self._evaluating, lacking, ADD_EVALUATE)
        self._sent = []
        self._summarise(server_round, answers)
        if not answers:
            return None
        return self._aggregated(self.evaluate_metrics_aggr_fn, answers, self.log.evaluate)

    def _keep_records(self, function: MetricsFn | None, node_id: int, reply: Message) -> None:
        """Keep what a metrics function is to see of a reply: all records but those of parameters."""
        if function is not None:
            self._records[node_id] = RecordDict(
                {name: record for name, record in reply.content.items() if not isinstance(record, ArrayRecord)}
            )

    def _aggregated(
        self, function: MetricsFn | None, node_ids: Iterable[int], numbers: dict[str, float]
    ) -> MetricRecord:
        """Return what a metrics function makes of some clients' replies, and note it; without one, our own means."""
        if function is None:
            return MetricRecord(dict(numbers))
        found = function([self._records[node_id] for node_id in node_ids], self.keys.weighted_by_key)
        self._records = {}
        self.log.note_computed(numbers, found)
        return found

    @property
    def _form(self) -> dict[str, str]:
        """What clients are told of the form in which parameters are wanted."""
        return {} if self.upload == "float32" else {wire.UPLOAD: self.upload}

    @property
    def _bound(self) -> dict[str, float]:
        """How far clients are to go; the server clips all the same, for one may not."""
        return {wire.CLIP: float(self.federation.privacy.clip)} if self.federation.privacy.clip else {}

    def _ask(
        self,
        server_round: int,
        grid: Grid,
        arrays: ArrayRecord,
        rates_of: Mapping[int, tuple[float, ...]],
        told: Mapping[int, Mapping[str, object]],
    ) -> list[Message]:
        """Return the messages that ask for an evaluation, having asked for moments where the model needs them."""
        current = EvaluationRound(self.federation, arrays, rates_of, told)
        moments: dict[float, Moments] = {}
        # A model of a client's own is measured by that client.
        asks = self.evaluation.static_norm and not self.federation.personal
        if rates_of and asks and batch_norms(self.federation.model):
            total = self._sum_of_moments(self.federation, crosses_superlink(grid))
            layers = {node: {rate: self.federation.norms(rate) for rate in own} for node, own in rates_of.items()}
            self._query_moments(server_round, grid, Queries(current.queries(), layers, self._timeout), total.add)
            moments = self._release(total.result())
            if moments and (left := self._restrict(dict.fromkeys(rates_of, moments))) != rates_of:
                current = EvaluationRound(self.federation, arrays, left, told)
        self.moments = moments
        return current.evaluations(moments)

    def _query_moments(
        self, server_round: int, grid: Grid, queries: Queries, add: Callable[[int, Mapping[float, Moments]], None]
    ) -> None:
        """Ask for moments those clients whose app may have a handler for it."""
        by_node = {message.metadata.dst_node_id: message for message in queries.sent}
        asked = {node_id: message for node_id, message in by_node.items() if node_id not in self._no_moments}
        if asked:
            note = partial(self._refuse_evaluation, server_round)
            lacking = query_moments(grid, replace(queries, sent=list(asked.values())), add, note)
            self._note_no_handler(self._no_moments, asked, lacking, ADD_MOMENTS)

    def exchange(self, grid: Grid, messages: list[Message], timeout: float) -> Iterable[Message]:
        """Send the messages of ``configure_train`` and return the replies; with ``spare``, as soon as enough came."""
        if self.spare:
            return first_replies(grid, messages, self._enough, timeout)
        return grid.send_and_receive(messages, timeout=timeout)

    def _available(self, grid: Grid) -> list[int]:
        return gather_nodes(
            grid, self.federation, self.min_available_nodes, self.wait, timeout=min(QUERY_SECONDS, self._timeout)
        )
