"""The engine of a run: a federation, its options, and what one round leaves for the next.

A strategy opens a ``Round`` of training and an ``EvaluationRound`` on it, and translates between them and Flower.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence, Set
from typing import Literal

from heterofl_flwr.core.levels import level_name
from heterofl_flwr.errors import RoundError
from heterofl_flwr.federation.evaluation import Answers, example_bound
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.options import Options, build_chain
from heterofl_flwr.federation.records import RoundRecord, Tally
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.stages.privacy import Spent

QUERY_SECONDS = 120.0
"""How long a new client may take to say what it can hold: a busy machine may first have to start its clients."""

POLL_SECONDS = 0.5

logger = logging.getLogger(__name__)


class Engine:
    """A federation in a run: what one round leaves for the next, and who takes part."""

    def __init__(self, federation: Federation, *, counts_examples: bool = True) -> None:
        self.federation = federation
        self.counts_examples = counts_examples  # whether clients send numbers of examples, and not another metric
        self.num_rounds = 0  # the last round of the run; 0 if it is not known
        self.spent = Spent(self.options.privacy)  # of all runs: what was given away stays so
        self.chain = build_chain(self.options, self.spent)
        self.reset()

    @property
    def options(self) -> Options:
        """The options of the server."""
        return self.federation.options

    def reset(self) -> None:
        """Forget the clients and the rounds; what stages keep is theirs (``chain.load({})``)."""
        self.federation.reset()
        self.log = RoundRecord(server_round=0, seconds=0.0, learning_rate=0.0, rates={})  # of the current round
        self.tally = Tally()
        self.moments: dict[float, Moments] = {}  # of the last evaluation, by rate
        self.has_had_moments = False  # whether any evaluation of this run had some
        self.silent: set[int] = set()  # the clients that did not answer in time when they were to train in this round
        self.no_evaluate: set[int] = set()  # the clients whose app has no handler for evaluations
        self.no_moments: set[int] = set()  # those that have none for queries for moments
        self._capped: set[int] = set()
        self._warned_of_lists = False
        self._has_checked_mix = False
        self._warned_of_small: set[int] = set()

    def log_summary(self) -> None:
        """Log what the federation will do."""
        federation, options = self.federation, self.options
        logger.info("\t├──> Mix: %s, %s", federation.mix, federation.assignment)
        for rate in federation.mix.all_rates:
            parameters = federation.plan(rate).parameters
            logger.info("\t│\t├── Level %s: rate %g, %s parameters", level_name(rate), rate, f"{parameters:,}")
        smallest, largest = federation.mix.rates[-1], federation.mix.global_rate
        is_cut = federation.plan(smallest) != federation.plan(largest)
        if smallest < largest and not is_cut and not federation.personal:  # of which all sizes may share the same part
            logger.warning(
                "build(%g) has the shapes of build(%g), so all clients train the whole model: is its first argument "
                "the rate, and do its widths follow from it?",
                smallest,
                largest,
            )
        logger.info("\t├──> Rows by label: %s", ", ".join(federation.rows) or "none")
        if options.privacy.noise and federation.rows and options.averaging.labels != "none":
            logger.warning(
                "epsilon does not cover which classes a client has: with labels=%r they decide which rows count; "
                "choose labels='none' (train.labels=none)",
                options.averaging.labels,
            )
        logger.info("\t├──> Slices: %s", options.transfer.slice_rule)
        if federation.personal:
            logger.info("\t├──> Shared: %s", ", ".join(federation.shared) or "nothing")
        logger.info("\t├──> Replies: %s", options.transfer.upload)
        fractions = options.sampling.fraction_train, options.sampling.fraction_evaluate
        logger.info("\t└──> Sampling: %g to train, %g to evaluate", *fractions)

    def wait_for_nodes(
        self, list_nodes: Callable[[], Sequence[int]], register: Callable[[Sequence[int]], bool]
    ) -> Sequence[int]:
        """Return the clients that are there, as soon as there are enough.

        ``register`` registers new clients and returns whether there were any. While new ones come and say that there
        are more, this waits too: otherwise a first round could begin with any part of a simulation's clients.
        """
        sampling = self.options.sampling
        deadline = time.monotonic() + sampling.wait
        while True:
            node_ids = list_nodes()
            enough = len(node_ids) >= sampling.available
            if enough and not (register(node_ids) and self.federation.nodes.most_said() > len(node_ids)):
                return node_ids
            if time.monotonic() >= deadline:
                break
            time.sleep(min(POLL_SECONDS, sampling.wait))
        if enough:
            return node_ids
        raise RoundError(
            f"{len(node_ids)} nodes are there after {sampling.wait:g} s, expected at least {sampling.available}: start "
            f"more SuperNodes (flower-supernode), simulate more (flwr run . --federation-config 'num-supernodes=20'), "
            f"or ask for fewer (min_available_nodes)"
        )

    def warn_of_mix(self, server_round: int, node_ids: Sequence[int]) -> None:
        """Warn, in a run's first round, where the clients that are there are too few or too small for the mix."""
        if self._has_checked_mix:
            return
        self._has_checked_mix = True
        mix, clients = self.federation.mix, len(node_ids)
        largest = max((self.federation.largest_rate(server_round, node_id) for node_id in node_ids), default=0.0)
        if 0 < largest < mix.rates[0] and self.options.transfer.slice_rule == "prefix":
            whole, part = (self.federation.plan(rate).parameters for rate in (mix.global_rate, largest))
            logger.warning(
                "no client that is there can train more than rate %g, and the mix %s has a model of rate %g: %d of its "
                "%d parameters are never trained; let larger clients take part, or begin the mix with that rate",
                largest,
                mix,
                mix.rates[0],
                whole - part,
                whole,
            )
        if self.options.privacy.noise and self.options.privacy.delta * clients >= 1:
            logger.warning(
                "delta is %g and there are %d clients: epsilon at a delta of 1 / %d or more promises nothing; choose a "
                "smaller one",
                self.options.privacy.delta,
                clients,
                clients,
            )
        if clients < len(mix.parts):
            logger.warning(
                "%d clients share the %d parts of the mix %s, so some level has none; start more nodes (simulated: "
                "flwr run . --federation-config 'num-supernodes=20 client-resources-num-cpus=1')",
                clients,
                len(mix.parts),
                mix,
            )

    def warn_of_lists(self, names: Collection[str]) -> None:
        """Warn once of metrics that are lists, of which there are no means."""
        if names and not self._warned_of_lists:
            self._warned_of_lists = True
            logger.warning(
                "there are no means of metrics that are lists (%s): report a number for each entry, or give a function "
                "that joins them (train_metrics_aggr_fn, evaluate_metrics_aggr_fn)",
                ", ".join(sorted(names)),
            )

    def warn_of_absent(self) -> None:
        """Warn, once, of clients in the table of levels that were not there in the first round."""
        if self.federation.absent:
            logger.warning(
                "levels name %s, but no node there has this registered name or node id (flwr supernode list): it may "
                "come later, or the name is a mistake",
                ", ".join(sorted(self.federation.absent)),
            )
        self.federation.absent = set()

    def eligible_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return the clients without those that are suspended: too many replies in a row were refused."""
        suspended = self.tally.suspended(self.options.limits.refusals)
        return [node_id for node_id in node_ids if self.federation.nodes.partition(node_id) not in suspended]

    def trainable_nodes(self, node_ids: Sequence[int]) -> list[int]:
        """Return the clients that can be drawn to train; fail if none can."""
        eligible = self.eligible_nodes(node_ids)
        trainable = [node_id for node_id in eligible if self.federation.can_train(node_id)]
        if not trainable:
            raise RoundError(
                f"none of {len(node_ids)} clients can train: {len(node_ids) - len(eligible)} had "
                f"{self.options.limits.refusals} replies refused in a row, and {len(eligible)} can hold no rate of the "
                f"mix {self.federation.mix}: add a smaller rate to it, or find out what the others send"
            )
        if self.federation.assignment == "dynamic":
            self._warn_of_small(set(eligible).difference(trainable))
        return trainable

    def _warn_of_small(self, node_ids: Set[int]) -> None:
        """Warn once of each client that is never drawn, as it is smaller than all rates of the mix."""
        held = {node_id: self.federation.nodes[node_id].holds or 0.0 for node_id in node_ids - self._warned_of_small}
        self._warned_of_small |= node_ids
        if held:
            smallest, mix = min(held, key=held.__getitem__), self.federation.mix
            logger.warning(
                "%d nodes are not drawn: node %s can hold rate %g, but the smallest rate of the mix %s is %g; add "
                "that rate to the mix (-%gx1)",
                len(held),
                smallest,
                held[smallest],
                mix,
                mix.rates[-1],
                held[smallest],
            )

    def sample(self, server_round: int, node_ids: Sequence[int], purpose: Literal["train", "evaluate"]) -> list[int]:
        """Return the clients that take part in a round, drawn without replacement; to train, with spare ones."""
        sampling, federation = self.options.sampling, self.federation
        number = sampling.number(len(node_ids), purpose)
        if purpose == "train":
            number = sampling.with_spare(number)
        return federation.nodes.sample(node_ids, number, purpose, server_round, seed=federation.seed)

    def cap_examples(self, server_round: int, answers: Answers) -> Answers:
        """Return answers with examples up to the bound of ``Limits``; warn once of a client that exceeds it."""
        ratio = self.options.limits.examples_ratio
        bound = example_bound([number for number, _ in answers.values()], ratio)
        for node_id, (number, _) in answers.items():
            if number > bound and node_id not in self._capped:
                self._capped.add(node_id)
                logger.warning(
                    "round %d: node %s, partition %d, counts %s examples, more than %g times the median client: in "
                    "means of metrics it weighs %s (Limits(examples_ratio=...), server.max-examples-ratio)",
                    server_round,
                    node_id,
                    self.federation.nodes.partition(node_id),
                    f"{number:,.0f}",
                    ratio,
                    f"{bound:,.0f}",
                )
        return {node_id: (min(number, bound), metrics) for node_id, (number, metrics) in answers.items()}


class EngineView:
    """What a strategy shows of its engine."""

    engine: Engine

    @property
    def federation(self) -> Federation:
        """The global model and the clients."""
        return self.engine.federation

    @property
    def options(self) -> Options:
        """All options, by group."""
        return self.engine.options

    @property
    def log(self) -> RoundRecord:
        """The record of the current round."""
        return self.engine.log

    @property
    def tally(self) -> Tally:
        """Rejected replies by client."""
        return self.engine.tally

    @property
    def spent(self) -> Spent:
        """What the run has given away, where noise is added."""
        return self.engine.spent

    @property
    def moments(self) -> dict[float, Moments]:
        """The static batch norm moments of the last evaluation, by rate."""
        return self.engine.moments

    def summary(self) -> None:
        """Log what this strategy will do."""
        self.engine.log_summary()
