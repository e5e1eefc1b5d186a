"""HeteroFL as a strategy of Flower's Message API."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn

from heterofl_flwr import messages as wire
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.levels import Mix, level_name
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.methods.callbacks import RoundCallback
from heterofl_flwr.methods.evaluation import Evaluation, summarise, summarise_levels
from heterofl_flwr.methods.failure import RoundError
from heterofl_flwr.methods.federation import Assignment, Federation, Round
from heterofl_flwr.methods.instructions import EvaluationRound, instruction, size_of, slices_of
from heterofl_flwr.methods.queries import learn_nodes, query_moments, wait_for_nodes
from heterofl_flwr.methods.replies import fault_of, in_order, read_metrics, read_train_reply, weighted_means
from heterofl_flwr.methods.rounds import EvaluateFn, RoundLog, Rounds, run_rounds
from heterofl_flwr.methods.schedule import Schedule
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import batch_norms

logger = logging.getLogger(__name__)


class HeteroFL(Strategy):
    """Train one global model over clients of unequal size.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        From a rate to the model at that rate: your own function. ``heterofl_flwr.core.width`` gives the widths.
    mix : str | Mix
        The rates of the clients and their shares, such as ``"a1-b1-c1-d1-e1"`` or ``"1.0x1-0.3x9"``.
    assignment : "fix" | "dynamic"
        Whether a client's rate stays or is drawn anew each round.
    seed : int
        Every draw is a function of it, the round and the client's partition.
    fraction_train, fraction_evaluate : float
        ``max(fraction * clients, 1)`` clients take part.
    min_available_nodes : int
        The first round waits for so many.
    min_replies : int
        With fewer good replies than this a round fails, loudly.
    wait : float
        For how many seconds a round waits for nodes before it fails.
    learning_rate : Schedule | None
        From the round to the learning rate that clients are told; see ``multi_step``.
    label_rows : Sequence[str] | None
        Parameters whose rows belong to classes; None finds the classifier.
    fidelity : Fidelity
        Which of the paper's quirks to keep.
    server_momentum : float
        Momentum of the global model; entries that nobody trained do not move.
    evaluation : Evaluation
        What is evaluated, where, and how often.
    callbacks : Sequence[RoundCallback]
        Called after each round.
    """

    def __init__(
        self,
        build: Callable[[float], nn.Module],
        mix: str | Mix = "a1-b1-c1-d1-e1",
        *,
        assignment: Assignment = "fix",
        seed: int = 0,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_available_nodes: int = 2,
        min_replies: int = 1,
        wait: float = 60.0,
        learning_rate: Schedule | None = None,
        label_rows: Sequence[str] | None = None,
        fidelity: Fidelity | None = None,
        server_momentum: float = 0.0,
        evaluation: Evaluation | None = None,
        callbacks: Sequence[RoundCallback] = (),
    ) -> None:
        check_fraction("fraction_train", fraction_train)
        check_fraction("fraction_evaluate", fraction_evaluate)
        self.federation = Federation(
            build=build,
            mix=mix if isinstance(mix, Mix) else Mix.parse(mix),
            assignment=assignment,
            seed=seed,
            label_rows=label_rows,
            fidelity=fidelity or Fidelity(),
            server_momentum=server_momentum,
        )
        self.fraction_train = fraction_train
        self.fraction_evaluate = fraction_evaluate
        self.min_available_nodes = min_available_nodes
        self.min_replies = min_replies
        self.wait = wait
        self.learning_rate = learning_rate
        self.evaluation = evaluation or Evaluation()
        self.callbacks = tuple(callbacks)
        self.moments: dict[float, Moments] = {}
        self.log = RoundLog()
        self._num_rounds = 0
        self._timeout = 3600.0
        self._sent: list[Message] = []
        self._rates: dict[int, float] = {}
        self._round: Round | None = None

    def summary(self) -> None:
        """Log what this strategy will do."""
        federation = self.federation
        logger.info("\t├──> Mix: %s, %s", federation.mix, federation.assignment)
        for rate in federation.mix.rates:
            parameters = federation.plan(rate).parameters
            logger.info("\t│\t├── Level %s: rate %g, %s parameters", level_name(rate), rate, f"{parameters:,}")
        logger.info("\t├──> Rows by label: %s", ", ".join(federation.rows) or "none")
        logger.info("\t└──> Sampling: %g to train, %g to evaluate", self.fraction_train, self.fraction_evaluate)

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
        ``first_round=k``, the arrays it had after round k - 1, and ``federation.velocity`` where it has momentum.
        """
        if not 1 <= first_round <= num_rounds:
            raise ConfigError(f"first_round is {first_round}; expected 1 to the last round, {num_rounds}")
        self.summary()
        self._num_rounds, self._timeout = num_rounds, timeout
        if initial_arrays is None:
            initial_arrays = ArrayRecord(self.federation.initial_state())
        schedule = Rounds(
            first_round=first_round,
            num_rounds=num_rounds,
            timeout=timeout,
            train_config=train_config or ConfigRecord(),
            evaluate_config=evaluate_config or ConfigRecord(),
            evaluate_fn=evaluate_fn,
        )
        return run_rounds(self, grid, initial_arrays, schedule)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return a message for each client of the round, with its slice and its rate."""
        federation = self.federation
        node_ids = self._available(grid)
        sampled = federation.sample(server_round, node_ids, self.fraction_train)
        number = federation.nodes.num_partitions(node_ids)
        state = arrays.to_torch_state_dict()
        self._round = federation.open_round(state)
        self._rates = {node_id: federation.rate(server_round, node_id, number) for node_id in sampled}
        slices = slices_of(federation, state, self._rates.values())
        learning_rate = None if self.learning_rate is None else self.learning_rate(server_round)
        told = {} if learning_rate is None else {wire.LEARNING_RATE: learning_rate}
        self._sent = [
            instruction(
                federation,
                MessageType.TRAIN,
                node_id,
                server_round,
                slices[rate],
                {**config, **told, wire.RATE: rate},
            )
            for node_id, rate in self._rates.items()
        ]
        self.log = RoundLog(
            learning_rate=learning_rate or 0.0,
            rates={federation.nodes.partition(node_id): rate for node_id, rate in self._rates.items()},
            bytes_down=sum(size_of(slices[rate]) for rate in self._rates.values()),
        )
        return list(self._sent)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the replies one by one, in the order of the messages, and return the new global model."""
        if self._round is None:
            raise RoundError(f"round {server_round} was not configured: call configure_train first")
        answers: dict[int, tuple[float, Mapping[str, float]]] = {}
        for node_id, reply in in_order(self._sent, replies):
            fault = fault_of(reply)
            if reply is not None and fault is None:
                try:
                    answers[node_id] = self._add(self._round, node_id, reply)
                except ReplyError as error:
                    fault = str(error)
            if fault is not None:
                self.log.failures[self.federation.nodes.partition(node_id)] = fault
                logger.warning("round %d: node %s at rate %g: %s", server_round, node_id, self._rates[node_id], fault)
        self._check_replies(server_round, len(answers))
        new = self._round.close()
        self._round, self._sent = None, []
        self.log.train = weighted_means(list(answers.values()))
        self.log.train_by_level = {
            level_name(rate): weighted_means([own for node, own in answers.items() if self._rates[node] == rate])
            for rate in sorted({self._rates[node_id] for node_id in answers}, reverse=True)
        }
        return ArrayRecord(new), MetricRecord(dict(self.log.train))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return a message for each client that evaluates, with the model and its static batch norm moments."""
        self._sent = []
        if not self.evaluation.due(server_round, self._num_rounds):
            return []
        federation = self.federation
        node_ids = self._available(grid)
        sampled = federation.sample(server_round, node_ids, self.fraction_evaluate, "evaluate")
        rates_of = {node_id: rates for node_id in sampled if (rates := self._rates_to_evaluate(node_id))}
        state = federation.check_state(arrays.to_torch_state_dict())
        current = EvaluationRound(federation, server_round, state, rates_of, config)
        if self.evaluation.static_norm and batch_norms(federation.model):
            self.moments = query_moments(grid, current.queries(), rates_of, self._timeout)
        self._sent = current.evaluations(self.moments)
        self.log.evaluate["coverage"] = len(rates_of) / len(node_ids)
        return list(self._sent)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the means over the clients, weighted by examples, and the accuracy of the worst client."""
        answers: list[tuple[int, Mapping[str, float]]] = []
        for node_id, reply in in_order(self._sent, replies):
            fault = fault_of(reply)
            if reply is not None and fault is None:
                try:
                    answers.append(read_metrics(reply, f"node {node_id}"))
                except ReplyError as error:
                    fault = str(error)
            if fault is not None:
                logger.warning("round %d: node %s did not evaluate: %s", server_round, node_id, fault)
        self._sent = []
        if not answers:
            return None
        self.log.evaluate.update(summarise(answers))
        self.log.evaluate_by_level = summarise_levels(answers)
        return MetricRecord(dict(self.log.evaluate))

    def moment_tensors(self) -> dict[str, Tensor]:
        """Return the moments of the last evaluation, by rate and layer."""
        return {
            f"{rate}/{name}": tensor for rate, own in self.moments.items() for name, tensor in own.to_tensors().items()
        }

    def _available(self, grid: Grid) -> list[int]:
        node_ids = wait_for_nodes(grid, self.min_available_nodes, self.wait)
        learn_nodes(grid, self.federation, node_ids, self.wait)
        return node_ids

    def _rates_to_evaluate(self, node_id: int) -> tuple[float, ...]:
        """Return the rates that a client evaluates, the largest first; none if it cannot hold any of them."""
        mix = self.federation.mix
        capacity = self.federation.nodes[node_id].capacity
        limit = mix.global_rate if self.evaluation.nodes == "all" or capacity is None else capacity
        return tuple(rate for rate in (mix.rates if self.evaluation.levels else mix.rates[:1]) if rate <= limit)

    def _add(self, current: Round, node_id: int, reply: Message) -> tuple[float, Mapping[str, float]]:
        answer = read_train_reply(reply, f"node {node_id}")
        current.add(self._rates[node_id], answer.sub, answer.labels)
        self.log.bytes_up += answer.num_bytes
        if answer.capacity is not None:
            self.federation.nodes.set_capacity(node_id, answer.capacity)
        return float(answer.num_examples), answer.metrics

    def _check_replies(self, server_round: int, replies: int) -> None:
        if replies < max(self.min_replies, 1):
            faults = [f"partition {partition}: {fault}" for partition, fault in self.log.failures.items()]
            raise RoundError(
                f"round {server_round}: {replies} of {len(self._sent)} clients gave a usable reply, expected at least "
                f"{max(self.min_replies, 1)}; {'; '.join(faults[:3])}"
            )


def check_fraction(name: str, value: float) -> None:
    """Refuse a share that is none."""
    if not 0 < value <= 1:
        raise ConfigError(f"{name} is {value}; expected a number above 0 and up to 1")
