"""What the strategies of both of Flower's APIs share: options, who trains at which rate, and what replies add up to."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar, get_args

from torch import Tensor, nn

from heterofl_flwr import messages as wire
from heterofl_flwr.core.aggregate import Weights
from heterofl_flwr.core.choose import SliceRule
from heterofl_flwr.core.compress import Upload
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.levels import Mix, exact_rate, level_name
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.sharing import ALL
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.methods.callbacks import RoundCallback
from heterofl_flwr.methods.evaluation import Evaluation, of_level, summarise, summarise_levels, weighted_means
from heterofl_flwr.methods.failure import RoundError
from heterofl_flwr.methods.federation import Assignment, Federation, Round, TrainReply
from heterofl_flwr.methods.round_log import RoundLog
from heterofl_flwr.methods.schedule import Schedule
from heterofl_flwr.nn.moments import Moments

logger = logging.getLogger(__name__)

Word = TypeVar("Word", bound=str)


class HeteroFLBase:
    """HeteroFL without its messages.

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
        A round waits for so many.
    min_replies : int
        With fewer good replies than this a round fails, loudly.
    wait : float
        For how many seconds a round waits for nodes before it fails.
    learning_rate : Schedule | None
        From the round to the learning rate that clients are told; see ``multi_step``.
    upload : "float32" | "float16" | "int8"
        How clients send what they trained: as it is, or only what it changed by, in two bytes or in one.
    choose : "prefix" | "rolling" | "random-level" | "random-client"
        Which slices clients get: HeteroFL's prefixes; FedRolex's window, which moves on by one each round; or random
        ones, drawn each round for each rate or for each client.
    shared : Sequence[str]
        Patterns (``fnmatch``) of the parameters that travel and are averaged, by default all. The others stay with
        their clients: LG-FedAvg, or Standalone where none travel. Each client then evaluates a model of its own.
    weights : "equal" | "examples"
        What a client counts in the mean: once, as in HeteroFL, or by its examples, as in FedAvg.
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

    _num_rounds = 0

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
        upload: Upload = "float32",
        choose: SliceRule = "prefix",
        shared: Sequence[str] = ALL,
        weights: Weights = "equal",
        label_rows: Sequence[str] | None = None,
        fidelity: Fidelity | None = None,
        server_momentum: float = 0.0,
        evaluation: Evaluation | None = None,
        callbacks: Sequence[RoundCallback] = (),
    ) -> None:
        self.federation = Federation(
            build=build,
            mix=mix if isinstance(mix, Mix) else Mix.parse(mix),
            assignment=assignment,
            seed=seed,
            label_rows=label_rows,
            fidelity=fidelity or Fidelity(),
            server_momentum=server_momentum,
            choose=choose,
            shared=shared,
        )
        self.fraction_train = _fraction("fraction_train", fraction_train)
        self.fraction_evaluate = _fraction("fraction_evaluate", fraction_evaluate)
        self.min_available_nodes = min_available_nodes
        self.min_replies = min_replies
        self.wait = wait
        self.learning_rate = learning_rate
        self.upload = _one_of("upload", upload, Upload)
        self.weights = _one_of("weights", weights, Weights)
        self.evaluation = evaluation or Evaluation()
        self.callbacks = tuple(callbacks)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Forget what rounds left behind."""
        self.moments: dict[float, Moments] = {}
        self.log = RoundLog()
        self._rates: dict[int, float] = {}
        self._plans: dict[int, Plan] = {}
        self._round: Round | None = None
        self._answers: dict[int, tuple[float, Mapping[str, float]]] = {}
        self._evaluating: dict[int, tuple[float, ...]] = {}
        self._warned_of_few = False

    def summary(self) -> None:
        """Log what this strategy will do."""
        federation = self.federation
        logger.info("\t├──> Mix: %s, %s", federation.mix, federation.assignment)
        for rate in federation.mix.rates:
            parameters = federation.plan(rate).parameters
            logger.info("\t│\t├── Level %s: rate %g, %s parameters", level_name(rate), rate, f"{parameters:,}")
        logger.info("\t├──> Rows by label: %s", ", ".join(federation.rows) or "none")
        logger.info("\t├──> Slices: %s", federation.choose)
        if federation.personal:
            logger.info("\t├──> Shared: %s", ", ".join(federation.shared) or "nothing")
        logger.info("\t├──> Replies: %s", self.upload)
        logger.info("\t└──> Sampling: %g to train, %g to evaluate", self.fraction_train, self.fraction_evaluate)

    def moment_tensors(self) -> dict[str, Tensor]:
        """Return the moments of the last evaluation, by rate and layer."""
        return wire.moment_tensors(self.moments)

    def _begin(self, server_round: int, node_ids: Sequence[int], state: Mapping[str, Tensor]) -> dict[int, float]:
        """Begin a round and return its clients with their rates."""
        federation = self.federation
        self._warn_of_few(len(node_ids))
        sampled = federation.sample(server_round, node_ids, self.fraction_train)
        number = federation.nodes.num_partitions(node_ids)
        self._round = federation.open_round(state)
        self._rates = {node_id: federation.rate(server_round, node_id, number) for node_id in sampled}
        self._plans = {
            node_id: federation.plan_of(server_round, node_id, rate) for node_id, rate in self._rates.items()
        }
        self._answers = {}
        self.log = RoundLog(
            learning_rate=self.learning_rate(server_round) if self.learning_rate else 0.0,
            rates={federation.nodes.partition(node_id): rate for node_id, rate in self._rates.items()},
        )
        return self._rates

    def _warn_of_few(self, clients: int) -> None:
        """Say once how to simulate more clients, where there are fewer than the mix has parts."""
        parts = sum(self.federation.mix.counts)
        if clients < parts and not self._warned_of_few:
            self._warned_of_few = True
            logger.warning(
                "%d clients share the %d parts of the mix %s; for 20 virtual clients: flwr run . --federation-config "
                "'num-supernodes=20 client-resources-num-cpus=1'",
                clients,
                parts,
                self.federation.mix,
            )

    def _told(self, server_round: int, node_id: int, rate: float) -> dict[str, int | float | list[str]]:
        """Return what every client needs to know of its work."""
        told: dict[str, int | float | list[str]] = {
            wire.RATE: rate,
            wire.GLOBAL_RATE: self.federation.mix.global_rate,
            wire.SERVER_ROUND: server_round,
            wire.SEED: self.federation.seed,
            wire.PARTITION: self.federation.nodes.partition(node_id),
        }
        if self.federation.personal:
            told[wire.SHARED] = list(self.federation.shared) or [""]  # a config knows no empty list
        if self.learning_rate is not None:
            told[wire.LEARNING_RATE] = self.learning_rate(server_round)
        return told

    def _take(self, node_id: int, answer: TrainReply) -> None:
        """Add a client's reply; ``ReplyError`` if it does not fit."""
        if self._round is None:
            raise RoundError("no round was configured: configure one before aggregating")
        _check_capacity(answer.capacity)
        weight = 1.0 if self.weights == "equal" else float(answer.num_examples)
        self._round.add(self._plans[node_id], answer.sub, answer.labels, weight)
        self._answers[node_id] = float(answer.num_examples), answer.metrics
        self.log.bytes_up += answer.num_bytes
        if answer.capacity is not None:
            self.federation.nodes.set_capacity(node_id, answer.capacity)

    def _refuse(self, server_round: int, node_id: int, fault: str) -> None:
        """Note why a client's work is not used."""
        self.log.failures[self.federation.nodes.partition(node_id)] = fault
        logger.warning("round %d: node %s at rate %g: %s", server_round, node_id, self._rates[node_id], fault)

    def _finish(self, server_round: int) -> dict[str, Tensor]:
        """Return the new global state; fail if too few clients gave a usable reply."""
        if self._round is None:
            raise RoundError(f"round {server_round} was not configured: configure it before aggregating")
        if self._round.replies < max(self.min_replies, 1):
            faults = [f"; partition {partition}: {fault}" for partition, fault in self.log.failures.items()]
            raise RoundError(
                f"round {server_round}: {self._round.replies} of {len(self._rates)} clients gave a usable reply, "
                f"expected at least {max(self.min_replies, 1)}{''.join(faults[:3])}"
            )
        new = self._round.close()
        self._round = None
        self.log.train = weighted_means(list(self._answers.values()))
        self.log.train_by_level = {
            level_name(rate): weighted_means([own for node, own in self._answers.items() if self._rates[node] == rate])
            for rate in sorted({self._rates[node_id] for node_id in self._answers}, reverse=True)
        }
        return new

    def _evaluators(self, server_round: int, node_ids: Sequence[int]) -> dict[int, tuple[float, ...]]:
        """Return the clients that evaluate, each with its rates from the largest on."""
        sampled = self.federation.sample(server_round, node_ids, self.fraction_evaluate, "evaluate")
        mix = self.federation.mix
        if self.federation.personal:
            number = self.federation.nodes.num_partitions(node_ids)
            self._evaluating = {node: (self.federation.rate(server_round, node, number),) for node in sampled}
            asked = len(sampled)
        else:
            rates = mix.rates if self.evaluation.levels_due(server_round, self._num_rounds) else mix.rates[:1]
            self._evaluating = {node_id: held for node_id in sampled if (held := self._held(rates, node_id))}
            asked = sum(held[0] == mix.global_rate for held in self._evaluating.values())
        self.log.evaluate["coverage"] = asked / len(node_ids)
        if not self._evaluating:
            logger.warning("round %d: none of %d clients can hold a model to evaluate", server_round, len(sampled))
        return self._evaluating

    def _restrict(self, rates: Collection[float]) -> dict[int, tuple[float, ...]]:
        """Take out what cannot be evaluated, because nobody gave moments of it; return what is left."""
        left = {node_id: tuple(rate for rate in own if rate in rates) for node_id, own in self._evaluating.items()}
        left = {node_id: own for node_id, own in left.items() if own}
        if left != self._evaluating:
            logger.warning("only rates %s are evaluated: there are no moments of others", sorted(rates, reverse=True))
        self._evaluating = left
        return left

    def _held(self, rates: Sequence[float], node_id: int) -> tuple[float, ...]:
        """Return those of some rates that a client is to evaluate."""
        capacity = self.federation.nodes[node_id].capacity
        limit = self.federation.mix.global_rate if self.evaluation.nodes == "all" or capacity is None else capacity
        return tuple(rate for rate in rates if rate <= limit)

    def _summarise(self, answers: Mapping[int, tuple[int, Mapping[str, float]]]) -> dict[str, float]:
        """Note and return what the clients' evaluations, by node, add up to."""
        own = []
        for node_id, (number, metrics) in answers.items():
            rate = self._evaluating[node_id][0]
            whole = self.federation.personal or rate == self.federation.mix.global_rate
            own.append((number, metrics if whole else of_level(metrics, rate)))
        self.log.evaluate.update(summarise(own))
        self.log.evaluate_by_level = summarise_levels(own)
        return dict(self.log.evaluate)


def _check_capacity(capacity: float | None) -> None:
    if capacity is not None:
        try:
            exact_rate(capacity)
        except ConfigError as error:
            raise ReplyError(f"the capacity it reports is not usable: {error}") from error


def _one_of(name: str, value: Word, words: object) -> Word:
    if value not in get_args(words):
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(get_args(words))}")
    return value


def _fraction(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise ConfigError(f"{name} is {value}; expected a number above 0 and up to 1")
    return value
