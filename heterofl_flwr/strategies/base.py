"""What the strategies of both of Flower's APIs share: options, who trains at which rate, and what replies add up to."""

import logging
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from heterofl_flwr import messages as wire
from heterofl_flwr.core.axes import SliceRule
from heterofl_flwr.core.compression import Upload
from heterofl_flwr.core.counting_mean import Weights
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.levels import Mix, level_name
from heterofl_flwr.core.plan import ALL, Plan
from heterofl_flwr.core.replies import LabelRule
from heterofl_flwr.core.robust import Robust
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.arrivals import warn_of_few
from heterofl_flwr.federation.evaluation import Evaluation
from heterofl_flwr.federation.limits import (
    Limits,
    MinReplies,
    RoundError,
    at_least,
    check_capacity,
    extra,
    fraction,
    least_replies,
    one_of,
    reply_floor,
)
from heterofl_flwr.federation.privacy import TRAINING, Privacy, Spent
from heterofl_flwr.federation.records import RoundCallback, Tally
from heterofl_flwr.federation.round import Assignment, Federation, Round, TrainReply
from heterofl_flwr.federation.round_log import RoundLog, host_log
from heterofl_flwr.federation.server_optimizer import Schedule, ServerOptimizer, choose_optimizer
from heterofl_flwr.grids.simulated import SIMULATED
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.strategies.evaluators import Evaluating
from heterofl_flwr.strategies.flower_names import Keys, MetricsFn
from heterofl_flwr.strategies.replies import SILENT, check_wrappers

logger = logging.getLogger(__name__)

NAMED = 3
"""Clients whose faults a failed round names."""


class HeteroFLBase(Evaluating):
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
        ``max(fraction * clients, 1)`` clients take part. With ``fraction_evaluate=0.0`` no client is asked to evaluate,
        nor for what an evaluation needs.
    min_train_nodes, min_evaluate_nodes : int | None
        Where given, ``max(int(fraction * clients), min_train_nodes)`` take part, as in ``FedAvg``, and a round waits
        for at least so many nodes.
    spare : float
        So many more clients, as a share of those, are asked to train; the round waits only until enough have answered.
    min_available_nodes : int
        A round waits for so many.
    min_replies : int | float | "auto"
        With fewer good replies than this a round fails, loudly: a number of them, a share below 1 of the clients that
        the round needs (all that are asked but the spare ones), or ``auto`` for half of these. What simulated devices
        lose is not asked for by ``auto``; give ``SimulatedDevices`` a number or a share, too.
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
    labels : "sent" | "inferred" | "none"
        Which of these rows of a reply count: those of the classes that the client names, those that it trained, or all.
    fidelity : Fidelity
        Which of the paper's quirks to keep.
    server_optimizer : ServerOptimizer | None
        ``Momentum``, ``Adam``, ``Yogi`` or ``Adagrad``: makes a step of what the mean of a round changes, as Flower's
        ``FedAvgM``, ``FedAdam`` and so on do; entries that nobody held do not move. None takes the mean as it is.
    server_momentum : float
        Short for ``server_optimizer=Momentum(server_momentum=...)``.
    limits : Limits
        What a client's answer may be at most.
    privacy : Privacy
        What is clipped and noised, so that the model gives little away of any single client.
    robust : Robust | None
        What keeps a minority of hostile clients from moving the model far: the mean of each entry is a trimmed mean, a
        median or a clipped one. It goes with ``weights="equal"``, and not with noise. None for the counting mean.
    evaluation : Evaluation
        What is evaluated, where, and how often.
    callbacks : Sequence[RoundCallback]
        Called after each round.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn : Callable[[list[RecordDict], str], MetricRecord] | None
        As in ``FedAvg``: from what clients replied, and ``weighted_by_key``, to metrics. Records of parameters are left
        out, for they are dropped as soon as they are added up. None: the means, weighted by examples.
    weighted_by_key : str
        As in ``FedAvg``: the metric by which means are weighted, and parameters too with ``weights="examples"``.
    arrayrecord_key, configrecord_key : str
        As in ``FedAvg``: the names of the records of parameters and of the config in instructions.
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
        min_train_nodes: int | None = None,
        min_evaluate_nodes: int | None = None,
        spare: float = 0.0,
        min_available_nodes: int = 2,
        min_replies: MinReplies = "auto",
        wait: float = 60.0,
        learning_rate: Schedule | None = None,
        upload: Upload = "float32",
        choose: SliceRule = "prefix",
        shared: Sequence[str] = ALL,
        weights: Weights = "equal",
        label_rows: Sequence[str] | None = None,
        labels: LabelRule = "sent",
        fidelity: Fidelity | None = None,
        server_optimizer: ServerOptimizer | None = None,
        server_momentum: float = 0.0,
        limits: Limits | None = None,
        privacy: Privacy | None = None,
        robust: Robust | None = None,
        evaluation: Evaluation | None = None,
        callbacks: Sequence[RoundCallback] = (),
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
        weighted_by_key: str = wire.NUM_EXAMPLES,
        arrayrecord_key: str = wire.ARRAYS,
        configrecord_key: str = wire.CONFIG,
    ) -> None:
        self.limits = limits or Limits()
        self.federation = Federation(
            build=build,
            mix=mix if isinstance(mix, Mix) else Mix.parse(mix),
            assignment=assignment,
            seed=seed,
            label_rows=label_rows,
            fidelity=fidelity or Fidelity(),
            server_optimizer=choose_optimizer(server_optimizer, server_momentum),
            choose=choose,
            shared=shared,
            privacy=privacy or Privacy(),
            levels=self.limits.levels,
            robust=robust,
        )
        self.fraction_train = fraction("fraction_train", fraction_train)
        self.fraction_evaluate = fraction("fraction_evaluate", fraction_evaluate, zero=True)
        self.spare = extra("spare", spare)
        self.min_train_nodes = at_least("min_train_nodes", min_train_nodes)
        self.min_evaluate_nodes = at_least("min_evaluate_nodes", min_evaluate_nodes)
        self.min_available_nodes = max(min_available_nodes, min_train_nodes or 0, min_evaluate_nodes or 0)
        self.min_replies = reply_floor("min_replies", min_replies)
        self.wait = wait
        self.learning_rate = learning_rate
        self.upload = one_of("upload", upload, Upload)
        self.weights = one_of("weights", weights, Weights)
        if self.federation.privacy.noise and weights != "equal":
            raise ConfigError("privacy: noise fits a mean in which each client counts once; expected weights='equal'")
        if robust and weights != "equal":
            raise ConfigError("robust: a client that says its own weight outvotes others; expected weights='equal'")
        self.labels = one_of("labels", labels, LabelRule)
        if self.federation.privacy.noise and self.limits.norm_bound:
            raise ConfigError(
                "privacy: with noise a longer change is shortened, as a refusal would show who sent it; expected "
                "limits.norm_bound=0 (server.norm-bound)"
            )
        self.evaluation = evaluation or Evaluation()
        if self.federation.privacy.noise and self.evaluation.moments_merge == "robust":
            raise ConfigError(
                "privacy: with noise each client's moments are shortened already, and a median would let one client "
                "move what others count for; expected evaluation.moments_merge='auto' (evaluate.moments-merge)"
            )
        self.callbacks = tuple(callbacks)
        self.spent = Spent(self.federation.privacy)  # of all runs: what was given away stays so
        self.train_metrics_aggr_fn = train_metrics_aggr_fn
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn
        self.keys = Keys(
            weighted_by_key=weighted_by_key, arrayrecord_key=arrayrecord_key, configrecord_key=configrecord_key
        )
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Forget what rounds left behind."""
        self.moments: dict[float, Moments] = {}
        self.tally = Tally()
        self.log = RoundLog()
        self._rates: dict[int, float] = {}
        self._plans: dict[int, Plan] = {}
        self._round: Round | None = None
        self._answers: dict[int, tuple[float, Mapping[str, float]]] = {}
        self._evaluating, self._asked, self._there = {}, {}, ()
        self._no_evaluate, self._no_moments, self._capped = set(), set(), set()
        self._warned_of_few = False
        self._silent = set()
        self._enough = 0

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
        self._warned_of_few = self._warned_of_few or warn_of_few(len(node_ids), federation.mix)
        partition = federation.nodes.partition
        able = self._able(node_ids)
        least = self.min_train_nodes
        self._enough = federation.number(able, self.fraction_train, least)
        sampled = federation.sample(server_round, able, self.fraction_train, least=least, spare=self.spare)
        self._silent = set()
        self._round = federation.open_round(server_round, state, norm_bound=self.limits.norm_bound, labels=self.labels)
        self._rates = {node_id: federation.rate(server_round, node_id) for node_id in sampled}
        self._plans = {
            node_id: federation.plan_of(server_round, node_id, rate) for node_id, rate in self._rates.items()
        }
        whole = federation.plan(federation.mix.global_rate)
        if list(state) != list(whole.axes) or any(plan != whole for plan in self._plans.values()):
            check_wrappers(server_round)
        self._answers, self._evaluating, self._asked = {}, {}, {}
        self.log = RoundLog(
            learning_rate=self.learning_rate(server_round) if self.learning_rate else 0.0,
            rates={partition(node_id): rate for node_id, rate in self._rates.items()},
        )
        return self._rates

    @property
    def prints_rounds(self) -> bool:
        """Whether a callback shows the rounds."""
        return any(callback.prints_rounds for callback in self.callbacks)

    def _able(self, node_ids: Sequence[int]) -> list[int]:
        """Return the clients that can be drawn to train; fail if none can."""
        welcome = self._welcome(node_ids)
        able = [node_id for node_id in welcome if not self.federation.holds_none(node_id)]
        if not able:
            raise RoundError(
                f"none of {len(node_ids)} clients can train: {len(node_ids) - len(welcome)} had "
                f"{self.limits.refusals} replies refused in a row, and {len(welcome)} can hold no rate of the mix "
                f"{self.federation.mix}: add a smaller rate to it, or find out what the others send"
            )
        return able

    def _told(self, server_round: int, node_id: int, rate: float) -> dict[str, int | float | str | list[str]]:
        """Return what every client needs to know of its work."""
        told: dict[str, int | float | str | list[str]] = {
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
        check_capacity(answer.capacity)
        weight = 1.0 if self.weights == "equal" else float(answer.num_examples)
        self._round.add(self._plans[node_id], answer.sub, answer.labels, weight)
        self._answers[node_id] = float(answer.num_examples), answer.metrics
        self.log.bytes_up += answer.num_bytes
        self.tally.accept(self.federation.nodes.partition(node_id))
        if self.keys.weighted_by_key == wire.NUM_EXAMPLES:
            self.federation.nodes.set_examples(node_id, answer.num_examples)
        if answer.capacity is not None:
            self.federation.nodes.set_capacity(node_id, answer.capacity)

    def _refuse(self, server_round: int, node_id: int, fault: str, came: bool) -> None:
        """Note why a client's work is not used, and whether there was a reply at all, and warn of it."""
        partition = self.federation.nodes.partition(node_id)
        self.log.failures[partition] = fault
        if fault.startswith(SIMULATED):
            return
        if fault == SILENT:
            self._silent.add(node_id)
        logger.warning("round %d: node %s at rate %g: %s", server_round, node_id, self._rates[node_id], fault)
        if came:
            self.log.refused.append(partition)
            self.tally.refuse(partition)
            if partition in self.tally.resting(self.limits.refusals):
                logger.warning(
                    "node %s is not drawn any more: %d replies refused in a row", node_id, self.limits.refusals
                )

    def _finish(self, server_round: int) -> dict[str, Tensor]:
        """Return the new global state; fail if too few clients gave a usable reply."""
        if self._round is None:
            raise RoundError(f"round {server_round} was not configured: configure it before aggregating")
        self._check_replies(server_round, self._round.replies)
        self._warn_of_absent()
        new = self._round.close()
        self.spent.add(TRAINING)
        self.log.privacy = self.spent.facts()
        self._round = None
        answers = self._cap(server_round, self._answers)
        self.log.note_training([(self._rates[node_id], *answer) for node_id, answer in answers.items()])
        if not self.prints_rounds:
            host_log.info("%s", self.log.line(server_round))
        return new

    def _check_replies(self, server_round: int, replies: int) -> None:
        """Fail if a round has too few usable replies: its model and its metrics would be those of a few clients."""
        lost = sum(fault.startswith(SIMULATED) for fault in self.log.failures.values())
        asked = len(self._rates) - (lost if self.min_replies == "auto" else 0)
        least = least_replies(self.min_replies, min(self._enough, asked))
        if replies >= least:
            return
        faults = [f"; partition {partition}: {fault}" for partition, fault in self.log.failures.items()]
        more = f"; {len(faults) - NAMED} more failed" if len(faults) > NAMED else ""
        raise RoundError(
            f"round {server_round}: {replies} of {len(self._rates)} clients gave a usable reply, expected at least "
            f"{least}: mend what the others fail with, or let rounds go on with fewer (min_replies or "
            f"sample.min-replies, which is {self.min_replies}){''.join(faults[:NAMED])}{more}"
        )

    def _warn_of_absent(self) -> None:
        """Warn, once, of clients in the table of levels that were not there in the first round."""
        if self.federation.absent:
            logger.warning(
                "levels name %s, but no node there has this registered name or node id (flwr supernode list): it may "
                "come later, or the name is a mistake",
                ", ".join(sorted(self.federation.absent)),
            )
        self.federation.absent = set()
