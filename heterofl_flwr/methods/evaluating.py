"""Which clients evaluate which rates, and what their answers add up to."""

import logging
from collections.abc import Collection, Mapping, Sequence

from heterofl_flwr.methods.evaluation import Answers, Evaluation, limited, of_level, of_rates, summaries
from heterofl_flwr.methods.federation import Federation
from heterofl_flwr.methods.limits import Limits
from heterofl_flwr.methods.privacy import MOMENTS, Spent, noise_moments
from heterofl_flwr.methods.round_log import RoundLog
from heterofl_flwr.methods.tally import Tally
from heterofl_flwr.nn.moments import Moments

logger = logging.getLogger(__name__)


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

    def _welcome(self, node_ids: Sequence[int]) -> list[int]:
        """Return the clients without those of which too many replies in a row were refused."""
        resting = self.tally.resting(self.limits.refusals)
        return [node_id for node_id in node_ids if self.federation.nodes.partition(node_id) not in resting]

    def _evaluators(self, server_round: int, node_ids: Sequence[int]) -> dict[int, tuple[float, ...]]:
        """Return the clients that evaluate, each with its rates from the largest on.

        Those that did not answer in time when they were to train are busy or gone, and are not waited for again.
        """
        welcome = self._welcome(node_ids)
        least = self.min_evaluate_nodes
        drawn = (
            self.federation.sample(server_round, welcome, self.fraction_evaluate, "evaluate", least=least)
            if welcome
            else []
        )
        sampled = [node_id for node_id in drawn if node_id not in self._silent]
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
        capacity = self.federation.nodes[node_id].capacity
        limit = self.federation.mix.global_rate if self.evaluation.nodes == "all" or capacity is None else capacity
        return tuple(rate for rate in rates if rate <= limit)

    def _summarise(self, answers: Answers) -> dict[str, float]:
        """Note and return what the clients' evaluations add up to."""
        scores, self.log.evaluate_by_level = self._scores(answers)
        # What the server found out is not for clients to say.
        self.log.evaluate = {**scores, **self.log.evaluate}
        return dict(self.log.evaluate)

    def _scores(self, answers: Answers) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return what evaluations say of the global model, and of each level's own."""
        own = []
        for node_id, (number, metrics) in answers.items():
            rate = self._evaluating[node_id][0]
            whole = self.federation.personal or rate == self.federation.mix.global_rate
            known = of_rates(metrics, (*self.federation.mix.rates, *self._evaluating[node_id]))
            own.append((number, known if whole else of_level(known, rate)))
        return summaries(own)

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
