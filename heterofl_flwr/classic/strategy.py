"""HeteroFL as a strategy of Flower's classic API."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    MetricsAggregationFn,
    NDArrays,
    Parameters,
    Scalar,
    parameters_to_ndarrays,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy
from torch import Tensor

from heterofl_flwr import messages as wire
from heterofl_flwr.classic.arrays import moments_to_arrays, named, pack, size_of, unpack
from heterofl_flwr.classic.proxies import (
    ask_all,
    ask_for_moments,
    cause_of,
    crosses_network,
    faults_of,
    properties_of,
    read_evaluate,
    read_fit,
    without_evaluate,
)
from heterofl_flwr.client import Build
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.federation.arrivals import gather
from heterofl_flwr.federation.limits import short
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import batch_norms
from heterofl_flwr.strategies.base import HeteroFLBase
from heterofl_flwr.strategies.evaluators import ADD_EVALUATE
from heterofl_flwr.strategies.flower_names import classic_options

logger = logging.getLogger(__name__)

CentralEvaluation = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None]
ConfigOfRound = Callable[[int], dict[str, Scalar]]

Rates = tuple[float, ...]
Result = TypeVar("Result")


class HeteroFL(HeteroFLBase, Strategy):
    """Train one global model over clients of unequal size, through Flower's classic API.

    Parameters
    ----------
    initial_parameters : Parameters | None
        What the global model starts from; default: a freshly built one.
    evaluate_fn : Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None] | None
        Evaluates the global model on the server: from round, parameters and an empty config to loss and metrics.
    on_fit_config_fn, on_evaluate_config_fn : Callable[[int], dict[str, Scalar]] | None
        From the round to what else clients are told, as in ``FedAvg``.
    num_rounds : int
        The last round, after which clients evaluate whatever ``evaluation.every`` says; the classic API does not tell
        its strategies.
    fraction_fit, min_fit_clients, min_evaluate_clients, min_available_clients
        ``fraction_train``, ``min_train_nodes``, ``min_evaluate_nodes`` and ``min_available_nodes`` of ``HeteroFLBase``.
    fit_metrics_aggregation_fn, evaluate_metrics_aggregation_fn
        As in ``FedAvg``: from a list of (number of examples, metrics) to metrics; None: the means by examples.
    accept_failures : bool
        As in ``FedAvg``: with False, a round in which any client fails changes nothing.
    inplace : bool
        Without effect: replies are always summed in place.
    build, mix, **options
        Those of ``HeteroFLBase``, but for ``callbacks``, as nothing in the classic API says that a round has ended,
        for ``shared``, as parameters travel without names, and for ``upload``, as what a ``NumPyClient`` returns has
        no place to say its form, and for ``spare``, as its server waits for all clients that it asks.
        Clients that answer ``properties_of(context, moments=True)`` are asked for static batch norm moments.
    """

    def __init__(
        self,
        build: Build,
        mix: str | Mix = "a1-b1-c1-d1-e1",
        *,
        initial_parameters: Parameters | None = None,
        evaluate_fn: CentralEvaluation | None = None,
        on_fit_config_fn: ConfigOfRound | None = None,
        on_evaluate_config_fn: ConfigOfRound | None = None,
        num_rounds: int = 0,
        fraction_fit: float | None = None,
        min_fit_clients: int | None = None,
        min_evaluate_clients: int | None = None,
        min_available_clients: int | None = None,
        fit_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        evaluate_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        accept_failures: bool = True,
        inplace: bool = True,
        **options: Any,
    ) -> None:
        del inplace
        given = {
            "fraction_fit": fraction_fit,
            "min_fit_clients": min_fit_clients,
            "min_evaluate_clients": min_evaluate_clients,
            "min_available_clients": min_available_clients,
        }
        super().__init__(build, mix, **classic_options(options, given))
        if self.callbacks:
            raise ConfigError("the classic API has no place for callbacks: use heterofl_flwr.HeteroFL, or leave them")
        if self.upload != "float32":
            raise ConfigError(
                f"the classic API sends parameters as they are, not in {self.upload}: use heterofl_flwr.HeteroFL, or "
                f"leave upload"
            )
        if self.federation.personal:
            raise ConfigError(
                "the classic API sends parameters without their names, so none can stay with a client: use "
                "heterofl_flwr.HeteroFL, or leave shared"
            )
        if self.spare:
            raise ConfigError(
                "the classic API waits for all clients that it asks: use heterofl_flwr.HeteroFL, or leave spare"
            )
        self._initial_parameters = initial_parameters
        self._evaluate_fn = evaluate_fn
        self._fit_config = on_fit_config_fn
        self._evaluate_config = on_evaluate_config_fn
        self._num_rounds = num_rounds
        self._fit_metrics = fit_metrics_aggregation_fn
        self._evaluate_metrics = evaluate_metrics_aggregation_fn
        self._accept_failures = accept_failures
        self._ids: dict[str, int] = {}
        self._give_moments: set[int] = set()

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """Return the parameters of the global model to start from."""
        del client_manager
        self.summary()
        return self._initial_parameters or pack(self.federation.initial_state().values())

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Return an instruction for each client of the round, with its slice and its rate."""
        proxies = self._available(client_manager)
        state = self._unpack(parameters)
        rates = self._begin(server_round, sorted(proxies), state)
        sent = {plan: pack(plan.extract(state).values()) for plan in dict.fromkeys(self._plans.values())}
        for number, plan in self._plans.items():
            self.log.send(rates[number], size_of(sent[plan]))
        asked = self._fit_config(server_round) if self._fit_config else {}
        return [
            (
                proxies[number],
                FitIns(
                    sent[self._plans[number]],
                    self._config(server_round, number, (rate,), task=wire.TASK_TRAIN, asked=asked),
                ),
            )
            for number, rate in rates.items()
        ]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Add the results in the order in which the instructions went out, and return the new global model."""
        if failures and not self._accept_failures:
            logger.warning("round %d changes nothing: %d clients failed", server_round, len(failures))
            return None, {}
        answers = self._first_of_each(results)
        faults, unnamed = faults_of(failures, self._ids)
        kept: dict[int, FitRes] = {}
        for node_id, plan in self._plans.items():
            answer = answers.pop(node_id, None)
            if answer is None:
                fault = faults.get(node_id, f"no result; {unnamed}" if unnamed else "no result")
                self._refuse(server_round, node_id, fault, False)
                continue
            try:
                self._take(node_id, read_fit(answer, plan, self.limits, f"client {node_id}"))
                kept[node_id] = answer
            except ReplyError as error:
                self._refuse(server_round, node_id, short(f"{error}{cause_of(answer, plan)}"), True)
        new = self._finish(server_round)
        counted = [kept[node_id] for node_id in self._answers]
        return pack(new.values()), self._aggregated(self._fit_metrics, counted, self.log.train)

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Return an instruction for each client that evaluates, with the model and its static batch norm moments."""
        if not self.fraction_evaluate or not self.evaluation.due(server_round, self._num_rounds):
            return []
        proxies = self._available(client_manager)
        rates_of = self._evaluators(server_round, sorted(proxies))
        state = self._unpack(parameters)
        self.moments = {}
        if self.evaluation.static_norm and batch_norms(self.federation.model):
            self.moments = self._release(self._query_moments(server_round, state, proxies))
            rates_of = self._restrict(dict.fromkeys(rates_of, self.moments)) if self.moments else rates_of
        sent = self._packed(state, rates_of, self.moments)
        asked = self._evaluate_config(server_round) if self._evaluate_config else {}
        if self.moments:
            asked = {**asked, wire.MOMENTS_KIND: self.federation.fidelity.moments}
        return [
            (
                proxies[number],
                EvaluateIns(sent[own], self._config(server_round, number, own, task=wire.TASK_EVALUATE, asked=asked)),
            )
            for number, own in rates_of.items()
        ]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Return the mean loss over the clients, weighted by examples, and their mean metrics."""
        if failures and not self._accept_failures:
            return None, {}
        came = self._first_of_each(results)
        faults, unnamed = faults_of(failures, self._ids)
        lacking = without_evaluate(failures, self._ids)
        self._note_no_handler(self._no_evaluate, self._evaluating, lacking, ADD_EVALUATE)
        answers = {}
        for node_id in self._evaluating:
            if node_id in lacking:
                continue
            fault = faults.get(node_id, f"no result; {unnamed}" if unnamed else "no result")
            if node_id in came:
                try:
                    answers[node_id] = read_evaluate(came[node_id], self.limits, f"client {node_id}")
                    continue
                except ReplyError as error:
                    fault = short(str(error))
            self._refuse_evaluation(server_round, node_id, fault)
        summary = self._summarise(server_round, answers)
        if not answers:
            return None, {}
        loss = summary.get("loss")
        counted = [came[node_id] for node_id in answers]
        found = self._aggregated(self._evaluate_metrics, counted, self.log.evaluate)
        return loss, {key: value for key, value in found.items() if self._evaluate_metrics or key != "loss"}

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, dict[str, Scalar]] | None:
        """Evaluate the global model on the server, if there is a function for it."""
        if self._evaluate_fn is None:
            return None
        return self._evaluate_fn(server_round, parameters_to_ndarrays(parameters), {})

    def _available(self, client_manager: ClientManager) -> dict[int, ClientProxy]:
        """Return the clients by number, having asked the new ones what they can hold."""
        proxies: dict[int, ClientProxy] = {}

        def there() -> list[int]:
            client_manager.num_available()  # under a ServerApp, this looks for new nodes
            proxies.clear()
            proxies.update(
                (self._ids.setdefault(cid, len(self._ids)), proxy)
                for cid, proxy in sorted(dict(client_manager.all()).items())
            )
            return list(proxies)

        gather(
            there,
            lambda numbers: self._learn({number: proxies[number] for number in numbers}),
            self.federation,
            minimum=self.min_available_nodes,
            wait=self.wait,
        )
        return proxies

    def _learn(self, proxies: Mapping[int, ClientProxy]) -> bool:
        """Ask the clients that are new what they can hold, if any are."""
        new = [number for number in proxies if number not in self.federation.nodes]
        answers = dict(zip(new, ask_all(properties_of, [proxies[number] for number in new]), strict=True))
        silent = [proxies[number].cid for number in new if answers[number] is None]
        if silent:
            logger.warning(
                "%d new clients did not say what they can hold and train at the smallest rate, %g: %s",
                len(silent),
                self.federation.mix.rates[-1],
                ", ".join(silent[:3]),
            )
        if new:
            self._give_moments |= {number for number, own in answers.items() if own and own.gives_moments}
            known = {number: own.capability if own else None for number, own in answers.items()}
            self.federation.register(known, present=proxies, ids={number: proxies[number].cid for number in new})
        return bool(new)

    def _query_moments(
        self, server_round: int, state: Mapping[str, Tensor], proxies: Mapping[int, ClientProxy]
    ) -> dict[float, Moments]:
        """Return the static batch norm moments that clients give; none if no client ever promised any."""
        rates_of = {number: rates for number, rates in self._evaluating.items() if number in self._give_moments}
        sent = self._packed(state, rates_of)
        asked: dict[str, Scalar] = {wire.MOMENTS_KIND: self.federation.fidelity.moments}
        instructions = {
            number: FitIns(sent[rates], self._config(server_round, number, rates, task=wire.TASK_MOMENTS, asked=asked))
            for number, rates in rates_of.items()
        }
        remote = any(map(crosses_network, proxies.values()))
        return ask_for_moments(
            self._sum_of_moments(self.federation, remote),
            proxies,
            instructions,
            rates_of,
            lambda number, fault: self._refuse_evaluation(server_round, number, fault),
        )

    def _first_of_each(self, results: Sequence[tuple[ClientProxy, Result]]) -> dict[int, Result]:
        """Return the results by client; a second one of the same client, or one of a stranger, is dropped."""
        found: dict[int, Result] = {}
        for proxy, answer in results:
            if proxy.cid in self._ids and self._ids[proxy.cid] not in found:
                found[self._ids[proxy.cid]] = answer
            else:
                logger.warning("a result of client %s is dropped: it is not known, or has answered already", proxy.cid)
        return found

    def _packed(
        self, state: Mapping[str, Tensor], rates_of: Mapping[int, Rates], moments: Mapping[float, Moments] | None = None
    ) -> dict[Rates, Parameters]:
        """Return one packet for all clients of the same rates: the largest slice, and the rates' moments behind it."""
        return {
            rates: pack(
                self.federation.plan(rates[0]).extract(state).values(),
                moments_to_arrays({rate: moments[rate] for rate in rates} if moments else {}),
            )
            for rates in set(rates_of.values())
        }

    def _config(
        self, server_round: int, number: int, rates: Rates, *, task: str, asked: Mapping[str, Scalar]
    ) -> dict[str, Scalar]:
        """Return what a client is told: first what the caller asked for, then what no caller may change."""
        return {
            **asked,
            **cast("dict[str, Scalar]", self._told(server_round, number, rates[0])),
            wire.SCHEMA_KEY: wire.SCHEMA,
            wire.TASK: task,
            wire.RATES: ",".join(map(str, rates)),
        }

    def _unpack(self, parameters: Parameters) -> dict[str, Tensor]:
        names = self.federation.plan(self.federation.mix.global_rate).axes
        return named(names, unpack(parameters, "the server"), "the server")

    def _aggregated(
        self, function: MetricsAggregationFn | None, answers: Sequence[FitRes | EvaluateRes], means: dict[str, float]
    ) -> dict[str, Scalar]:
        """Return what a metrics function makes of clients' answers, and note it; without one, our own means."""
        if function is None:
            return dict(means)
        found = function([(answer.num_examples, answer.metrics) for answer in answers])
        self.log.note_computed(means, found)
        return found
