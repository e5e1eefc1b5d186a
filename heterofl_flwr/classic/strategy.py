"""HeteroFL as a strategy of Flower's classic API."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar, cast

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

from heterofl_flwr import messages
from heterofl_flwr.classic.arrays import count_bytes, moments_to_arrays, name_arrays, pack, unpack
from heterofl_flwr.classic.proxies import (
    ask_all,
    crosses_network,
    fit,
    likely_cause,
    query_properties,
    read_evaluate,
    read_failures,
    read_fit,
    read_moments,
)
from heterofl_flwr.core.counting_mean import Aggregator, Weights
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.core.reply_checks import LabelRule
from heterofl_flwr.core.robust import Robust
from heterofl_flwr.core.slice_rules import SliceRule
from heterofl_flwr.errors import ConfigError, HeteroFLError, ReplyError, check_count
from heterofl_flwr.federation.engine import Engine, EngineView
from heterofl_flwr.federation.evaluation import Evaluation
from heterofl_flwr.federation.evaluation_round import EvaluationRound, Rates
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.limits import Limits, MinReplies, short
from heterofl_flwr.federation.options import Assignment, Averaging, Options, Sampling, Schedule, Transfer
from heterofl_flwr.federation.records import host_log
from heterofl_flwr.federation.round import Fault, Round, check_open
from heterofl_flwr.nn.models import Build
from heterofl_flwr.stages.chain import OpenMean
from heterofl_flwr.stages.privacy import Privacy
from heterofl_flwr.stages.stage import Stage, label
from heterofl_flwr.strategies.arguments import explain_unknown
from heterofl_flwr.strategies.instructions import client_config
from heterofl_flwr.strategies.read_replies import as_flower_error

logger = logging.getLogger(__name__)

RESERVED = messages.RESERVED | {messages.TASK}
"""Keys of instructions of the classic API, which a user's own config cannot have."""

CentralEvaluation = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None]
ConfigFn = Callable[[int], dict[str, Scalar]]
Result = TypeVar("Result")


class HeteroFL(EngineView, Strategy):
    """Train one global model over clients of unequal size, through Flower's classic API.

    Clients that answer ``properties_of(context, moments=True)`` are asked for static batch norm moments. It has no
    ``callbacks``, as nothing in the classic API says that a round has ended, no ``upload``, as what a ``NumPyClient``
    returns has no place to say its form, and no ``spare``, as its server waits for all clients that it asks.

    Parameters
    ----------
    build, mix
        As all that is not below, those of ``heterofl_flwr.HeteroFL``.
    fraction_fit, fraction_evaluate, min_fit_clients, min_evaluate_clients, min_available_clients
        As in ``FedAvg``: there ``fraction_train``, ``fraction_evaluate``, ``min_train_nodes``, ``min_evaluate_nodes``
        and ``min_available_nodes``.
    evaluate_fn : Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None] | None
        Evaluates the global model on the server: from round, parameters (no buffers) and an empty config to loss and
        metrics.
    on_fit_config_fn, on_evaluate_config_fn : Callable[[int], dict[str, Scalar]] | None
        As in ``FedAvg``: from the round to what else goes with its instructions.
    accept_failures : bool
        As in ``FedAvg``: with False a round in which any client fails changes nothing.
    initial_parameters : Parameters | None
        What the global model starts from, in the order of its parameters or of its ``state_dict``; default: a freshly
        built one.
    fit_metrics_aggregation_fn, evaluate_metrics_aggregation_fn : MetricsAggregationFn | None
        As in ``FedAvg``: from a list of (number of examples, metrics) to metrics; None: the means by examples.
    num_rounds : int
        The last round, after which clients evaluate whatever ``evaluation.every`` says; the classic API does not tell
        its strategies.
    """

    @explain_unknown(
        {
            "fraction_train": "use fraction_fit",
            "min_train_nodes": "use min_fit_clients",
            "min_evaluate_nodes": "use min_evaluate_clients",
            "min_available_nodes": "use min_available_clients",
            "train_metrics_aggr_fn": "use fit_metrics_aggregation_fn",
            "evaluate_metrics_aggr_fn": "use evaluate_metrics_aggregation_fn",
            "weighted_by_key": "it weights by num_examples",
            "inplace": "replies are always summed in place",
            **dict.fromkeys(("callbacks", "upload", "spare"), "use heterofl_flwr.HeteroFL"),
        }
    )
    def __init__(
        self,
        build: Build,
        mix: str | Mix = "a1-b1-c1-d1-e1",
        *,
        assignment: Assignment = "fix",
        global_rate: str | float | None = None,
        seed: int = 0,
        fraction_fit: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_fit_clients: int | None = None,
        min_evaluate_clients: int | None = None,
        min_available_clients: int = 2,
        min_replies: MinReplies = "auto",
        wait: float = 60.0,
        slice_rule: SliceRule = "prefix",
        roll_by: int = 1,
        learning_rate: Schedule | None = None,
        proximal_mu: float | None = None,
        weights: Weights = "equal",
        label_rows: Sequence[str] | None = None,
        labels: LabelRule = "sent",
        fidelity: Fidelity = Fidelity(),
        robust: Robust | None = None,
        aggregator: OpenMean = Aggregator,
        stages: Sequence[Stage] = (),
        limits: Limits = Limits(),
        privacy: Privacy = Privacy(),
        evaluation: Evaluation = Evaluation(),
        evaluate_fn: CentralEvaluation | None = None,
        on_fit_config_fn: ConfigFn | None = None,
        on_evaluate_config_fn: ConfigFn | None = None,
        accept_failures: bool = True,
        initial_parameters: Parameters | None = None,
        fit_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        evaluate_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        num_rounds: int = 0,
    ) -> None:
        check_count("num_rounds", num_rounds, 0)
        options = Options(
            sampling=Sampling(
                fraction_train=fraction_fit,
                fraction_evaluate=fraction_evaluate,
                min_train_nodes=min_fit_clients,
                min_evaluate_nodes=min_evaluate_clients,
                min_available_nodes=min_available_clients,
                min_replies=min_replies,
                wait=wait,
            ),
            transfer=Transfer(
                slice_rule=slice_rule, roll_by=roll_by, learning_rate=learning_rate, proximal_mu=proximal_mu
            ),
            averaging=Averaging(
                weights=weights,
                label_rows=label_rows,
                labels=labels,
                fidelity=fidelity,
                robust=robust,
                aggregator=aggregator,
                stages=stages,
            ),
            limits=limits,
            privacy=privacy,
            evaluation=evaluation,
        )
        if kept := [label(stage) for stage in stages if stage.needs.fixed_slices]:
            raise ConfigError(
                f"{kept[0]} keeps something with each client, for which the classic API has no place: use "
                f"heterofl_flwr.HeteroFL"
            )
        whole = Mix.parse(mix).with_global_rate(global_rate)
        self.engine = Engine(Federation(build=build, mix=whole, assignment=assignment, seed=seed, options=options))
        self.engine.num_rounds = num_rounds
        self._evaluate_fn = evaluate_fn
        self._fit_config_fn, self._evaluate_config_fn = on_fit_config_fn, on_evaluate_config_fn
        self._accept_failures = accept_failures
        self._initial_parameters = initial_parameters
        self._fit_metrics_fn, self._evaluate_metrics_fn = fit_metrics_aggregation_fn, evaluate_metrics_aggregation_fn
        self._round: Round | None = None
        self._evaluation: EvaluationRound | None = None
        self._numbers: dict[str, int] = {}

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """Return the parameters of the global model to start from."""
        del client_manager
        if self._numbers:  # it ran before
            self.engine.reset()
            self.engine.chain.load({})
            self._numbers.clear()
        self.summary()
        return pack((self._given_state() or self.federation.initial_state()).values())

    def _given_state(self) -> dict[str, Tensor] | None:
        """Return what the caller gave to start from: arrays of parameters alone, or of buffers too."""
        if self._initial_parameters is None:
            return None
        arrays, whole = parameters_to_ndarrays(self._initial_parameters), list(self.federation.model.state_dict())
        names = list(self.federation.plan(self.federation.mix.global_rate).axes)
        if len(arrays) not in (len(names), len(whole)):
            raise ConfigError(
                f"initial_parameters has {len(arrays)} arrays; expected {len(names)}, as parameters_of(model) gives of "
                f"the global model, or all {len(whole)} of its state_dict"
            )
        return self.federation.check_state(name_arrays(names if len(arrays) == len(names) else whole, arrays))

    @as_flower_error()
    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Return an instruction for each client of the round, with its slice and its rate."""
        proxies = self._available(client_manager)
        state = self._unpack(parameters)
        self._round = current = Round(self.engine, server_round, sorted(proxies), state)
        sent = {plan: pack(plan.extract(state).values()) for plan in {own.plan for own in current.slices.values()}}
        asked = _asked(self._fit_config_fn, server_round)
        instructions = []
        for number, own in current.slices.items():
            self.log.note_sent(own.rate, count_bytes(sent[own.plan]))
            rates = tuple(self.federation.rates_inside(own.rate))
            config = self._config(server_round, number, rates, {**asked, messages.TASK: messages.TASK_TRAIN})
            instructions.append((proxies[number], FitIns(sent[own.plan], config)))
        return instructions

    @as_flower_error()
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
        current = check_open(self._round)
        answers = self._first_results(results)
        faults, unnamed = read_failures(failures, self._numbers)
        for number, own in current.slices.items():
            if (answer := answers.get(number)) is None:
                current.refuse(number, faults.get(number, unnamed))
                continue
            try:
                current.add(number, read_fit(answer, own.plan, self.options.limits, f"client {number}"))
            except ReplyError as error:
                current.refuse(number, Fault(short(f"{error}{likely_cause(answer, own.plan)}"), "rejected"))
        new = current.close()
        self._round = None
        host_log.info("%s", self.log.line())
        counted = [answers[number] for number in current.answers]
        return pack(new.values()), self._aggregated(self._fit_metrics_fn, counted, self.log.train)

    @as_flower_error()
    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Return an instruction for each client that evaluates, with the model and its static batch norm moments."""
        self._evaluation, evaluation = None, self.options.evaluation
        if not self.options.sampling.fraction_evaluate or not evaluation.due(server_round, self.engine.num_rounds):
            return []
        proxies = self._available(client_manager)
        self._evaluation = current = EvaluationRound(self.engine, server_round, sorted(proxies))
        state = self.engine.chain.evaluated(self._unpack(parameters))
        kind: dict[str, Scalar] = {messages.MOMENTS_KIND: self.federation.fidelity.moments}
        self._collect_moments(current, server_round, state, proxies, kind)
        asked = _asked(self._evaluate_config_fn, server_round) | (kind if self.moments else {})
        sent = self._pack_models(state, current.rates.values())
        instructions = []
        for number, own in current.rates.items():
            config = self._config(server_round, number, own, {**asked, messages.TASK: messages.TASK_EVALUATE})
            instructions.append((proxies[number], EvaluateIns(sent[own], config)))
        return instructions

    def _collect_moments(
        self,
        current: EvaluationRound,
        server_round: int,
        state: Mapping[str, Tensor],
        proxies: Mapping[int, ClientProxy],
        kind: Mapping[str, Scalar],
    ) -> None:
        """Ask the clients that promised static batch norm moments for them, if any are needed."""
        norms = current.open_moments(remote=any(map(crosses_network, proxies.values())))
        if not norms:
            return
        sent = self._pack_models(state, [current.rates[number] for number in norms])
        asked = {}
        for number in norms:
            own = current.rates[number]
            config = self._config(server_round, number, own, {**kind, messages.TASK: messages.TASK_MOMENTS})
            asked[number] = proxies[number], FitIns(sent[own], config)
        variant = self.federation.fidelity.moments
        for number, answer in ask_all(fit, asked).items():
            try:
                # All are read before any is added, so an answer that does not fit changes nothing.
                current.add_moments(number, read_moments(answer, variant, norms[number], f"client {number}"))
            except HeteroFLError as error:
                current.refuse_moments(number, Fault(short(str(error)), "rejected"))
        current.close_moments()

    @as_flower_error()
    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Return the mean loss over the clients, weighted by examples, and their mean metrics."""
        current, self._evaluation = self._evaluation, None
        if current is None or (failures and not self._accept_failures):
            return None, {}
        came = self._first_results(results)
        faults, unnamed = read_failures(failures, self._numbers)
        for number in current.rates:
            fault = faults.get(number, unnamed)
            if number in came and fault.kind != "no handler":
                try:
                    current.answers[number] = read_evaluate(came[number], self.options.limits, f"client {number}")
                    continue
                except ReplyError as error:
                    fault = Fault(short(str(error)), "rejected")
            current.refuse(number, fault)
        summary = current.close()
        if not current.answers:
            return None, {}
        function = self._evaluate_metrics_fn
        found = self._aggregated(function, [came[number] for number in current.whole_answers()], self.log.evaluate)
        return summary.get("loss"), {key: own for key, own in found.items() if function or key != "loss"}

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, dict[str, Scalar]] | None:
        """Evaluate the global model on the server, if there is a function for it."""
        if self._evaluate_fn is None:
            return None
        state = self._unpack(parameters)
        found = self.engine.chain.evaluated(state)
        evaluated = parameters if found is state else pack(found.values())
        return self._evaluate_fn(server_round, parameters_to_ndarrays(evaluated), {})

    def _available(self, client_manager: ClientManager) -> dict[int, ClientProxy]:
        """Return the clients by number, having asked the new ones what they can hold."""
        proxies: dict[int, ClientProxy] = {}

        def list_clients() -> list[int]:
            client_manager.num_available()  # under a ServerApp, this looks for new nodes
            proxies.clear()
            for cid, proxy in sorted(dict(client_manager.all()).items()):
                proxies[self._numbers.setdefault(cid, len(self._numbers))] = proxy
            return list(proxies)

        self.engine.wait_for_nodes(list_clients, lambda numbers: self._register(proxies))
        return proxies

    def _register(self, proxies: Mapping[int, ClientProxy]) -> bool:
        """Ask the clients that are new what they can hold, if any are."""
        new = {number: proxy for number, proxy in proxies.items() if number not in self.federation.nodes}
        answers = ask_all(query_properties, new)
        if new:
            self.engine.no_moments -= new.keys()  # one that was away may answer for moments now
            self.engine.no_moments |= {number for number, (_, moments) in answers.items() if not moments}
            known = {number: own for number, (own, _) in answers.items()}
            self.federation.register(known, present=proxies, ids={number: proxy.cid for number, proxy in new.items()})
        return bool(new)

    def _first_results(self, results: Sequence[tuple[ClientProxy, Result]]) -> dict[int, Result]:
        """Return the results by client; a second one of the same client, or one of a stranger, is dropped."""
        found: dict[int, Result] = {}
        for proxy, answer in results:
            if proxy.cid in self._numbers and self._numbers[proxy.cid] not in found:
                found[self._numbers[proxy.cid]] = answer
            else:
                logger.warning("a result of client %s is dropped: it is not known, or has answered already", proxy.cid)
        return found

    def _pack_models(self, state: Mapping[str, Tensor], rates: Iterable[Rates]) -> dict[Rates, Parameters]:
        """Return one packet for all clients of the same rates: the largest slice, and the rates' moments behind it."""
        moments = self.moments
        return {
            own: pack(
                self.federation.plan(own[0]).extract(state).values(),
                moments_to_arrays({rate: moments[rate] for rate in own} if moments else {}),
            )
            for own in set(rates)
        }

    def _config(self, server_round: int, number: int, rates: Rates, asked: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return a client's config: what the caller asked for, and what no caller may change."""
        told = cast("dict[str, Scalar]", client_config(self.engine, server_round, number, rates[0]))
        if messages.PROXIMAL_MU in told:
            told["proximal_mu"] = told.pop(messages.PROXIMAL_MU)  # as in the classic FedProx
        return {
            **asked,
            **told,
            messages.SCHEMA_KEY: messages.SCHEMA,
            messages.RATES: ",".join(map(str, rates)),
        }

    def _unpack(self, parameters: Parameters) -> dict[str, Tensor]:
        return name_arrays(self.federation.plan(self.federation.mix.global_rate).axes, unpack(parameters))

    def _aggregated(
        self, function: MetricsAggregationFn | None, answers: Sequence[FitRes | EvaluateRes], means: dict[str, float]
    ) -> dict[str, Scalar]:
        """Return what a metrics function computes from clients' answers, and note it; without one, the means."""
        if function is None or not answers:
            return dict(means)
        found = function([(answer.num_examples, answer.metrics) for answer in answers])
        self.log.note_computed(means, found)
        return found


def _asked(config_fn: ConfigFn | None, server_round: int) -> dict[str, Scalar]:
    """Return what the caller wants to go with a round's instructions."""
    asked = dict(config_fn(server_round)) if config_fn else {}
    messages.check_own_keys(asked, RESERVED)
    return asked
