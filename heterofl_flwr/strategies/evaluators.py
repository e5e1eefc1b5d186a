"""Which clients evaluate which rates, and what their answers add up to."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence

from heterofl_flwr.federation.evaluation import (
    LOCAL_ACCURACY,
    WORST_ACCURACY,
    Answers,
    Evaluation,
    Summary,
    heaviest,
    limited,
    medians,
    of_level,
    of_rates,
    summarise,
    summarise_levels,
    weighted_means,
)
from heterofl_flwr.federation.limits import Limits
from heterofl_flwr.federation.privacy import MOMENTS, Spent, noise_moments
from heterofl_flwr.federation.records import Tally
from heterofl_flwr.federation.round import Federation
from heterofl_flwr.federation.round_log import RoundLog
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.strategies.queries import MomentsSum

logger = logging.getLogger(__name__)

ADD_EVALUATE = (
    "they are not asked to evaluate again; add one (@app.evaluate(), or evaluate of a NumPyClient), or evaluate on the "
    "server alone (fraction_evaluate=0.0)"
)
ADD_MOMENTS = (
    "they are not asked for static batch norm moments again, and batch norm normalises by batch where nobody has any; "
    "add one (answer_queries(app, build, data=...)), or mean it (Evaluation(static_norm=False))"
)


class Evaluating:
    """The part of a strategy that has clients evaluate; its attributes are those of ``HeteroFLBase``."""

    federation: Federation
    evaluation: Evaluation
    fraction_evaluate: float
    min_evaluate_nodes: int | None
    limits: Limits
    log: RoundLog
    spent: Spent
    tally: Tally
    _num_rounds = 0
    _evaluating: dict[int, tuple[float, ...]]
    _silent: set[int]
    _asked: dict[int, bool]
    _there: Sequence[int]
    _no_evaluate: set[int]
    _no_moments: set[int]
    _capped: set[int]

    def _welcome(self, node_ids: Sequence[int]) -> list[int]:
        """Return the clients without those of which too many replies in a row were refused."""
        resting = self.tally.resting(self.limits.refusals)
        return [node_id for node_id in node_ids if self.federation.nodes.partition(node_id) not in resting]

    def _evaluators(self, server_round: int, node_ids: Sequence[int]) -> dict[int, tuple[float, ...]]:
        """Return the clients that evaluate, each with its rates from the largest on.

        Those that did not answer in time when they were to train are busy or gone, and are not waited for again.
        """
        able = [node_id for node_id in self._welcome(node_ids) if node_id not in self._no_evaluate]
        share, least = self.fraction_evaluate, self.min_evaluate_nodes
        drawn = self.federation.sample(server_round, able, share, "evaluate", least=least) if able else []
        mix = self.federation.mix
        self._there = node_ids
        if self.federation.personal:
            held: dict[int, tuple[float, ...]]
            held = {node_id: (self.federation.rate(server_round, node_id),) for node_id in drawn}
        else:
            rates = mix.rates if self.evaluation.levels_due(server_round, self._num_rounds) else mix.rates[:1]
            held = {node_id: own for node_id in drawn if (own := self._held(rates, node_id))}
        self._asked = {node_id: self._is_whole(own) for node_id, own in held.items()}
        self._evaluating = {node_id: own for node_id, own in held.items() if node_id not in self._silent}
        if drawn:
            self.log.evaluate["coverage"] = 0.0
        if drawn and not self._evaluating:
            logger.warning("round %d: none of %d clients can hold a model to evaluate", server_round, len(drawn))
        return self._evaluating

    def _is_whole(self, rates: Sequence[float]) -> bool:
        """Whether a client with these rates evaluates the global model, or its own where each has one."""
        return self.federation.personal or rates[0] == self.federation.mix.global_rate

    def _restrict(self, known: Mapping[int, Collection[float]]) -> dict[int, tuple[float, ...]]:
        """Take out of each client's rates those of whose model nobody gave moments; return what is left."""
        left = limited(self._evaluating, known)
        if left != self._evaluating:
            rates = sorted({rate for own in left.values() for rate in own}, reverse=True)
            logger.warning("only rates %s are evaluated: there are no moments of others", rates)
        self._evaluating = left
        return left

    def _held(self, rates: Sequence[float], node_id: int) -> tuple[float, ...]:
        """Return those of some rates that a client is to evaluate."""
        held = None if self.evaluation.nodes == "all" else self.federation.nodes[node_id].holds
        return tuple(rate for rate in rates if held is None or rate <= held)

    def _summarise(self, server_round: int, answers: Answers) -> dict[str, float]:
        """Note and return what the clients' evaluations add up to."""
        capped = self._cap(server_round, answers)
        scores, self.log.evaluate_by_level = self._scores(capped)
        middle, _ = self._scores(capped, medians)
        self.log.evaluate_medians = {name: middle[name] for name in middle if name.rpartition("/")[2] != WORST_ACCURACY}
        self.log.worst_client = self._worst(answers)
        if self._note_answers(answers):
            self.log.partial = tuple(scores)
            logger.warning(
                "round %d: only %d of %d clients that were asked evaluated; its metrics are never the best",
                server_round,
                self.log.evaluate_answers,
                self.log.evaluate_asked,
            )
        # What the server found out is not for clients to say.
        self.log.evaluate = {**scores, **self.log.evaluate}
        return dict(self.log.evaluate)

    def _note_answers(self, answers: Answers) -> bool:
        """Note how many clients were asked and answered; return whether those are fewer than half."""
        asked = {node_id: whole for node_id, whole in self._asked.items() if node_id not in self._no_evaluate}
        if not asked:
            if self._asked:  # an app without evaluation covers nothing
                self.log.evaluate.pop("coverage", None)
            return False
        whole = sum(self._is_whole(self._evaluating[node_id]) for node_id in answers)
        self.log.evaluate["coverage"] = whole / len(self._there)
        counts = [(len(answers), len(asked)), (whole, sum(asked.values()))]
        found, of = min((count for count in counts if count[1]), key=lambda count: count[0] / count[1])
        self.log.evaluate_answers, self.log.evaluate_asked = found, of
        return 2 * found < of

    def _note_no_handler(self, known: set[int], asked: Collection[int], lacking: Collection[int], advice: str) -> None:
        """Remember whose app has no handler for what was asked, so that it is asked once; warn of the first ones.

        Where all that were asked lack it, so does every client that is there: they run one app.
        """
        if not lacking:
            return
        if not known:
            logger.warning("%d of %d clients have no handler for it: %s", len(lacking), len(asked), advice)
        known.update(self._there if len(lacking) == len(asked) else lacking)

    def _cap(self, server_round: int, answers: Answers) -> Answers:
        """Return answers with examples up to the bound of ``Limits``; say once of a client that it goes beyond."""
        bound = heaviest([number for number, _ in answers.values()], self.limits.examples_ratio)
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
                    self.limits.examples_ratio,
                    f"{bound:,.0f}",
                )
        return {node_id: (min(number, bound), metrics) for node_id, (number, metrics) in answers.items()}

    def _worst(self, answers: Answers) -> int | None:
        """Return the partition of the client whose accuracy is ``worst-accuracy``."""
        found = [
            (metrics[LOCAL_ACCURACY], self.federation.nodes.partition(node_id))
            for node_id, (number, metrics) in answers.items()
            if number and LOCAL_ACCURACY in metrics and self._is_whole(self._evaluating[node_id])
        ]
        return min(((own, client) for own, client in found if not math.isnan(own)), default=(0.0, None))[1]

    def _scores(
        self, answers: Answers, summary: Summary = weighted_means
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return what evaluations say of the global model, and the means of each level's own."""
        own = []
        for node_id, (number, metrics) in answers.items():
            rates = self._evaluating[node_id]
            known = of_rates(metrics, (*self.federation.mix.rates, *rates))
            own.append((number, known if self._is_whole(rates) else of_level(known, rates[0])))
        return summarise(own, summary), summarise_levels(own)

    def _sum_of_moments(self, federation: Federation, remote: bool) -> MomentsSum:
        """Return what adds up clients' moments; ``remote`` says whether they come from other machines."""
        merge, noise = self.evaluation.moments_merge, federation.privacy.noise
        robust = merge == "robust" or (merge == "auto" and remote and not noise)
        return MomentsSum(federation, self.limits, robust=robust)

    def _release(self, moments: dict[float, Moments]) -> dict[float, Moments]:
        """Return moments as clients may know them: with noise, where there is any, which is accounted for."""
        if not self.federation.privacy.noise or not moments:
            return moments
        self.spent.add(MOMENTS, len(moments))
        self.log.privacy = self.spent.facts()
        return noise_moments(moments, self.federation.privacy)

    def _refuse_evaluation(self, server_round: int, node_id: int, fault: str) -> None:
        """Note why a client's evaluation, or its moments, are not used."""
        self.log.evaluate_failures[self.federation.nodes.partition(node_id)] = fault
        logger.warning("round %d: node %s did not evaluate: %s", server_round, node_id, fault)
