"""A round of evaluation, and the summary of its metrics."""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import quantiles

from heterofl_flwr.common.errors import Fault, counted, listed
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.client_metrics import (
    HEADLINE_KINDS,
    LOCAL_ACCURACY,
    WORST_ACCURACY,
    Answer,
    medians,
    minority_headlines,
    split_metrics,
    weighted_means,
)
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.round_record import RoundRecord

logger = logging.getLogger(__name__)

Rates = tuple[float, ...]
SplitAnswers = Mapping[int, tuple[float, Mapping[float | None, Mapping[str, float]]]]
"""For each client, the number of examples, and the metrics by rate; the rate None stands for the global model."""


class EvaluationRound:
    """A round of evaluation.

    For each client, call ``refuse`` or add its metrics to ``answers``. Then call ``close``.

    Attributes
    ----------
    rates
        The rates that each client evaluates, the largest first.
    answers
        For each client that has replied: its number of examples, and its metrics.
    """

    def __init__(
        self,
        federation: Federation,
        log: RoundRecord,
        server_round: int,
        sampled: Sequence[int],
        *,
        num_rounds: int,
        silent: Collection[int],
    ) -> None:
        self._federation, self._options, self._log = federation, federation.options, log
        self.server_round = server_round
        levels = self._options.evaluation.levels_due(server_round, num_rounds)
        rates = {node_id: picked for node_id in sampled if (picked := self._pick_rates(node_id, levels=levels))}
        self._is_global = {node_id: self._has_global_model(client_rates) for node_id, client_rates in rates.items()}
        self.rates = {node_id: client_rates for node_id, client_rates in rates.items() if node_id not in silent}
        self.answers: dict[int, Answer] = {}
        if sampled:
            self._log.evaluate["coverage"] = 0.0
        if sampled and not self.rates:
            logger.warning(
                "round %d: none of %s can hold a model to evaluate", server_round, counted(len(sampled), "client")
            )

    def _pick_rates(self, node_id: int, *, levels: bool) -> Rates:
        if self._federation.architecture.personal:
            return (self._federation.levels.rate(self.server_round, node_id),)
        capacity = None if self._options.evaluation.nodes == "all" else self._federation.nodes[node_id].holds
        rates = tuple(rate for rate in self._federation.mix.all_rates if capacity is None or rate <= capacity)
        return rates if levels else rates[:1]

    def _has_global_model(self, rates: Sequence[float]) -> bool:
        """Whether the first rate is that of the global model; always True if the architecture is personal."""
        return self._federation.architecture.personal or rates[0] == self._federation.mix.global_rate

    def refuse_moments(self, node_id: int, fault: Fault) -> None:
        """Record why a client's moments are not used.

        If the client did not answer in time, it is also left out of the evaluation.
        """
        if fault.kind == "silent":
            del self.rates[node_id]
        self._note_failure(node_id, "gave", f"no usable moments: {fault.reason}")

    def restrict_rates(self, moments: Collection[float]) -> None:
        """Remove from ``rates`` all rates that are not in ``moments``, and clients without a remaining rate."""
        rates = {node_id: tuple(rate for rate in rates if rate in moments) for node_id, rates in self.rates.items()}
        rates = {node_id: client_rates for node_id, client_rates in rates.items() if client_rates}
        if rates != self.rates:
            evaluated = sorted({rate for client_rates in rates.values() for rate in client_rates}, reverse=True)
            logger.warning("only rates %s are evaluated: there are no moments of others", evaluated)
        self.rates = rates

    def refuse(self, node_id: int, fault: Fault) -> None:
        """Record why a client's evaluation is not used."""
        self._note_failure(node_id, "did not evaluate:", fault.reason)

    def _note_failure(self, node_id: int, verb: str, reason: str) -> None:
        nodes = self._federation.nodes
        nodes.record_failure(node_id, reason, self._log.evaluate_failures, self._log.names)
        logger.warning("round %d: %s %s %s", self.server_round, nodes.name(node_id), verb, reason)

    def leave_out(self, node_id: int, reply_bytes: int | None = None) -> None:
        """Remove a client without recording a failure.

        This is for clients whose message or reply a subclass of the strategy dropped. ``reply_bytes`` is not used.
        """
        del self.rates[node_id], self._is_global[node_id]

    def close(self) -> dict[str, float]:
        """Record the metrics of all models; return the metrics of the global model."""
        log, answers = self._log, self._split_answers()
        scores = self._summarise(answers, None, weighted_means)
        rates = dict.fromkeys(
            rate for number, metrics in answers.values() if number for rate in metrics if rate is not None
        )
        log.evaluate_by_level = {level_name(rate): self._summarise(answers, rate, weighted_means) for rate in rates}
        if not rates and any(len(self.rates[node_id]) > 1 for node_id in answers):
            logger.warning(
                "round %d: the clients were asked to evaluate each level's model (Evaluation(levels=...)), and "
                "reported none: let evaluate loop over rate, model in task.models(), and name each metric by the "
                "rate, such as metrics[f'accuracy/{rate}']",
                self.server_round,
            )
        middle = self._summarise(answers, None, medians)
        log.evaluate_medians = {name: middle[name] for name in middle if name.rpartition("/")[2] != WORST_ACCURACY}
        accuracies = [
            (metrics[None][LOCAL_ACCURACY], self._federation.nodes.partition(node_id))
            for node_id, (number, metrics) in answers.items()
            if number and not math.isnan(metrics.get(None, {}).get(LOCAL_ACCURACY, math.nan))
        ]
        if accuracies:
            scores[WORST_ACCURACY], log.worst_client = min(accuracies)
        if len(accuracies) > 1:
            log.accuracy_deciles = tuple(quantiles([pair[0] for pair in accuracies], n=10, method="inclusive"))
        if self._note_coverage(scores):
            log.partial = tuple(scores)
            logger.warning(
                "round %d: only %d of %s evaluated; metrics of this round are never the best (in code, the server "
                "evaluates alone with fraction_evaluate=0.0 and an evaluate_fn)",
                self.server_round,
                log.evaluate_answers,
                counted(log.evaluate_asked, "client"),
            )
        log.evaluate = {**scores, **log.evaluate}
        return dict(log.evaluate)

    def global_answers(self) -> list[int]:
        """Return the clients that have evaluated the global model or, with personal parameters, their own model."""
        return [node_id for node_id in self.answers if self._has_global_model(self.rates[node_id])]

    def _note_coverage(self, scores: Collection[str]) -> bool:
        """Record ``coverage``, ``evaluate_asked`` and ``evaluate_answers``; return ``few_answered`` of the record.

        Warn if the metrics of clients, ``scores``, have that name too.
        """
        log, sampled = self._log, self._is_global
        if "coverage" in scores:
            logger.warning(
                "round %d: the metric coverage of clients is left out, because the server's own has this name: name it "
                "otherwise",
                self.server_round,
            )
        if not sampled:
            return False
        answered = len(self.global_answers())
        log.evaluate["coverage"] = answered / len(self._federation.nodes.present)
        counts = [(len(self.answers), len(sampled)), (answered, sum(sampled.values()))]
        log.evaluate_answers, log.evaluate_asked = min(
            (count for count in counts if count[1]), key=lambda count: count[0] / count[1]
        )
        return log.few_answered

    def _split_answers(self) -> SplitAnswers:
        """Return, by client id, the number of examples and the metrics by rate.

        The rate None stands for the global model or, with personal parameters, for the client's own model. A headline
        metric of a rate is left out, with a warning, if fewer than half of the clients that evaluated this rate report
        the metric. Clients without examples do not count.
        """
        answers: dict[int, tuple[float, dict[float | None, dict[str, float]]]] = {}
        for node_id, (number, metrics) in self.answers.items():
            rates = self.rates[node_id]
            plain = None if self._has_global_model(rates) else rates[0]
            answers[node_id] = number, split_metrics(metrics, rates, plain)
        for rate in {rate for _, metrics in answers.values() for rate in metrics}:
            node_ids = [node_id for node_id in answers if rate in self.rates[node_id]]
            node_ids = self.global_answers() if rate is None else node_ids
            of_rate = [(answers[node_id][0], answers[node_id][1].get(rate, {})) for node_id in node_ids]
            if dropped := minority_headlines(of_rate):
                logger.warning(
                    "round %d: fewer than half of the clients reported %s, which is left out: let all clients report "
                    "it, or name it otherwise than ...%s",
                    self.server_round,
                    listed(dropped),
                    ", ...".join(HEADLINE_KINDS),
                )
            for _, metrics in of_rate:
                for name in dropped & metrics.keys():
                    del metrics[name]
        return {
            node_id: (number, {rate: values for rate, values in metrics.items() if values})
            for node_id, (number, metrics) in answers.items()
        }

    def _summarise(
        self, answers: SplitAnswers, rate: float | None, summary: Callable[[Sequence[Answer]], dict[str, float]]
    ) -> dict[str, float]:
        return summary([(number, metrics[rate]) for number, metrics in answers.values() if rate in metrics])
