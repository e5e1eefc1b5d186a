"""One evaluation: which clients evaluate which rates, their static batch norm moments, and what their answers give."""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from heterofl_flwr.common.errors import Fault, ReplyError, RoundError
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.evaluation import (
    LOCAL_ACCURACY,
    WORST_ACCURACY,
    Answer,
    means_and_worst,
    medians,
    split_metrics,
    weighted_means,
)
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.moments import Moments, check_layers, check_possible, sum_robust
from heterofl_flwr.stages.privacy import MOMENTS, Spent, clip_moments, noise_moments

logger = logging.getLogger(__name__)

Rates = tuple[float, ...]
Norms = Mapping[float, Mapping[str, int]]
"""The batch norm layers of a client's models, by rate, each with its channels."""

ANSWER_MOMENTS = (
    "let clients answer for them (answer_queries(app, build, data=...); properties_of(context, moments=True) and "
    "asks_for_moments of a NumPyClient), or evaluate without (Evaluation(static_norm=False))"
)

SplitAnswers = Mapping[int, tuple[float, Mapping[float | None, Mapping[str, float]]]]
"""The examples of each client, and its metrics by rate; None for the global model."""


class EvaluationRound:
    """An evaluation by clients: opened for those that are there; moments first, if needed; then answers; then closed.

    Those that did not answer in time when they were to train (``silent``), or for moments, are busy or gone, and are
    not asked again. ``rates`` are those that each client evaluates, from the largest on. What is found is noted in
    the round's record, ``log``.
    """

    def __init__(
        self,
        federation: Federation,
        log: RoundRecord,
        server_round: int,
        node_ids: Sequence[int],
        *,
        drawn: Sequence[int] | None = None,
        num_rounds: int = 0,
        silent: Collection[int] = (),
    ) -> None:
        self._federation, self._options, self._log = federation, federation.options, log
        self._server_round, self._present = server_round, node_ids
        if drawn is None:
            drawn = federation.sample(server_round, node_ids, "evaluate") if node_ids else []
        levels = self._options.evaluation.levels_due(server_round, num_rounds)
        held = {node_id: own for node_id in drawn if (own := self._pick_rates(node_id, levels=levels))}
        self._whole = {node_id: self._is_whole(own) for node_id, own in held.items()}
        self.rates = {node_id: own for node_id, own in held.items() if node_id not in silent}
        self.answers: dict[int, Answer] = {}
        self._asked_moments: dict[int, Norms] = {}
        self._moments: dict[float, list[Moments]] = {}  # their sum; where it is robust, those of each client
        self._robust = False
        self._moment_faults: list[str] = []
        if drawn:
            self._log.evaluate["coverage"] = 0.0
        if drawn and not self.rates:
            logger.warning("round %d: none of %d clients can hold a model to evaluate", server_round, len(drawn))

    def _pick_rates(self, node_id: int, *, levels: bool) -> Rates:
        """Return the rates that a client is to evaluate: the largest that it can, or those of all levels."""
        known = self._federation.mix.all_rates
        if self._federation.personal:
            return (self._federation.rate(self._server_round, node_id),)
        held = None if self._options.evaluation.nodes == "all" else self._federation.nodes[node_id].holds
        rates = tuple(rate for rate in known if held is None or rate <= held)
        return rates if levels else rates[:1]

    def _is_whole(self, rates: Sequence[float]) -> bool:
        """Whether a client with these rates evaluates the global model, or its own where each has one."""
        return self._federation.personal or rates[0] == self._federation.mix.global_rate

    def open_moments(self, *, remote: bool) -> dict[int, Norms]:
        """Return the clients to ask for moments, each with its norm layers by rate; none where none are needed.

        ``remote`` says whether moments come from other machines.
        """
        federation = self._federation
        # With noise, each client's moments are shortened already.
        self._robust = remote and not self._options.privacy.noise
        # A model of a client's own is measured by that client.
        if self._options.evaluation.static_norm and not federation.personal and batch_norms(federation.model):
            self._asked_moments = {
                node_id: {rate: federation.norms(rate) for rate in rates} for node_id, rates in self.rates.items()
            }
        return self._asked_moments

    def add_moments(self, found: Mapping[float, Moments]) -> None:
        """Add a client's moments, by rate; reject them whole if any do not fit."""
        federation, privacy = self._federation, self._options.privacy
        for rate, own in found.items():
            if own.kind != federation.fidelity.moments:
                raise ReplyError(f"moments of kind {own.kind}, expected {federation.fidelity.moments}")
            check_layers(own, federation.norms(rate))
            check_possible(own, self._options.limits.examples)
        for rate, own in found.items():
            counted = clip_moments(own, privacy) if privacy.noise else own
            kept = self._moments.setdefault(rate, [])
            if self._robust or not kept:
                kept.append(counted)
            else:
                kept[0] += counted

    def refuse_moments(self, node_id: int, fault: Fault) -> None:
        """Note why a client's moments are not used."""
        self._moment_faults.append(f"node {node_id}: {fault.reason}")
        if fault.kind == "silent":
            del self.rates[node_id]
        self.refuse(node_id, replace(fault, reason=f"no usable moments: {fault.reason}"))

    def close_moments(self, spent: Spent, *, needed: bool) -> dict[float, Moments]:
        """Return all clients' moments, with noise where there is any, and drop the rates of which nobody gave any.

        If they are ``needed``, as there were none so far, and nobody who has any gave usable ones, fail.
        """
        moments = {rate: sum_robust(kept) for rate, kept in self._moments.items()}
        faults, privacy = self._moment_faults, self._options.privacy
        none = f"none of {len(self._asked_moments)} nodes gave usable static batch norm moments"
        if faults and not moments and needed:
            raise RoundError(f"{none}: {ANSWER_MOMENTS}; {'; '.join(faults[:3])}")
        if not faults and not moments:
            logger.warning("%s, so batch norm normalises by batch; they are not asked again: %s", none, ANSWER_MOMENTS)
        if moments and privacy.noise:
            spent.add(MOMENTS, len(moments))
            self._log.privacy = spent.metrics()
            moments = noise_moments(moments, privacy)
        if faults or moments:
            self._restrict_rates(moments)
        return moments

    def _restrict_rates(self, moments: Collection[float]) -> None:
        """Evaluate only those rates of whose models there are moments."""
        found = {node_id: tuple(rate for rate in own if rate in moments) for node_id, own in self.rates.items()}
        left = {node_id: own for node_id, own in found.items() if own}
        if left != self.rates:
            rates_left = sorted({rate for own_rates in left.values() for rate in own_rates}, reverse=True)
            logger.warning("only rates %s are evaluated: there are no moments of others", rates_left)
        self.rates = left

    def refuse(self, node_id: int, fault: Fault) -> None:
        """Note why a client's evaluation is not used."""
        self._log.evaluate_failures[self._federation.nodes.partition(node_id)] = fault.reason
        logger.warning("round %d: node %s did not evaluate: %s", self._server_round, node_id, fault.reason)

    def leave_out(self, node_id: int) -> None:
        """Go on without a client of which the strategy's user wants nothing in this round, which is nobody's fault."""
        del self.rates[node_id], self._whole[node_id]

    def close(self) -> dict[str, float]:
        """Note and return the metrics of the global model."""
        log, answers = self._log, self._split_answers()
        scores = self._scores(answers, None, means_and_worst)
        rates = dict.fromkeys(rate for number, own in answers.values() if number for rate in own if rate is not None)
        log.evaluate_by_level = {level_name(rate): self._scores(answers, rate, weighted_means) for rate in rates}
        middle = self._scores(answers, None, medians)
        log.evaluate_medians = {name: middle[name] for name in middle if name.rpartition("/")[2] != WORST_ACCURACY}
        found = [
            (own[None][LOCAL_ACCURACY], self._federation.nodes.partition(node_id))
            for node_id, (number, own) in answers.items()
            if number and LOCAL_ACCURACY in own.get(None, {})
        ]
        log.worst_client = min((one for one in found if not math.isnan(one[0])), default=(0.0, None))[1]
        if self._note_coverage():
            log.partial = tuple(scores)
            logger.warning(
                "round %d: only %d of %d clients that were asked evaluated; its metrics are never the best (the "
                "server evaluates alone with fraction_evaluate=0.0)",
                self._server_round,
                log.evaluate_answers,
                log.evaluate_asked,
            )
        # What the server found out is not for clients to say.
        log.evaluate = {**scores, **log.evaluate}
        return dict(log.evaluate)

    def whole_answers(self) -> list[int]:
        """Return the clients whose answers are about the global model, or their own, and not about a smaller rate's."""
        return [node_id for node_id in self.answers if self._is_whole(self.rates[node_id])]

    def _note_coverage(self) -> bool:
        """Note how many clients were asked and answered; return whether those are fewer than half."""
        log, asked = self._log, self._whole
        if not asked:
            return False
        whole = len(self.whole_answers())
        log.evaluate["coverage"] = whole / len(self._present)
        counts = [(len(self.answers), len(asked)), (whole, sum(asked.values()))]
        log.evaluate_answers, log.evaluate_asked = min(
            (own for own in counts if own[1]), key=lambda own: own[0] / own[1]
        )
        return log.few_answered

    def _split_answers(self) -> SplitAnswers:
        """Return the answers with their metrics by rate."""
        found = {}
        for node_id, (number, metrics) in self.answers.items():
            rates = self.rates[node_id]
            found[node_id] = number, split_metrics(metrics, rates, None if self._is_whole(rates) else rates[0])
        return found

    def _scores(
        self, answers: SplitAnswers, rate: float | None, summary: Callable[[Sequence[Answer]], dict[str, float]]
    ) -> dict[str, float]:
        """Return a summary of the metrics of a rate over all clients."""
        return summary([(number, metrics[rate]) for number, metrics in answers.values() if rate in metrics])
