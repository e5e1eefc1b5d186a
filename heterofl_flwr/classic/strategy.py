"""``HeteroFL`` for Flower's classic API."""

from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any, NoReturn, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message
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
from flwr.serverapp import Grid

from heterofl_flwr.classic.client_proxies import Clients, collect_answers, to_replies
from heterofl_flwr.classic.translation import (
    PROXIMAL_MU,
    RESERVED,
    check_scalars,
    name_arrays,
    read_parameters,
    record_parameters,
    reported_metrics,
    to_scalars,
)
from heterofl_flwr.common.errors import ConfigError, check_count, check_seconds, check_takes
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.federation.evaluation_round import EvaluationRound
from heterofl_flwr.federation.round_record import RoundRecord, host_log
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.static_norm import refusing_unmeasured
from heterofl_flwr.stages.client_stage import FULL_PRECISION
from heterofl_flwr.stages.server_stage import stage_name
from heterofl_flwr.strategies import heterofl
from heterofl_flwr.strategies.arguments import CLASSIC
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.arrays import pack_tensors, read_tensors
from heterofl_flwr.transport.compat import ensure_identity, set_metadata

CentralEvaluation = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None]
ConfigFn = Callable[[int], dict[str, Scalar]]
Instruction = TypeVar("Instruction", FitIns, EvaluateIns)

LACKS = frozenset({"asynchronous", "callbacks", "resume", "should_stop"})
"""Arguments of ``heterofl_flwr.HeteroFL`` and of its ``start`` that the classic API does not support."""


class _Strategy(heterofl.HeteroFL):
    clients: Clients

    def is_remote(self, grid: Grid) -> bool:
        return self.clients.are_remote


class HeteroFL(Strategy):
    """Train one global model on clients of unequal size, with Flower's classic API.

    Clients that return ``properties_of(context, moments=True)`` are queried for static batch norm moments. Options of
    ``heterofl_flwr.HeteroFL`` that are missing: ``callbacks``, ``asynchronous``, ``training.upload``,
    ``sampling.spare``, ``slicing.by_level``, and stages that also run on clients.

    Parameters
    ----------
    build, mix
        As in ``heterofl_flwr.HeteroFL``.
    evaluate_fn : Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None] | None
        As in ``FedAvg``. The parameters do not include buffers, and the config is empty.
    on_fit_config_fn, on_evaluate_config_fn : Callable[[int], dict[str, Scalar]] | None
        As in ``FedAvg``: function of the round that returns a config for clients.
    initial_parameters : Parameters | None
        Initial parameters of the global model, in the order of its parameters or of its ``state_dict``. Default: those
        of a new model.
    fit_metrics_aggregation_fn, evaluate_metrics_aggregation_fn : MetricsAggregationFn | None
        As in ``FedAvg``. Default: means weighted by examples.
    num_rounds : int
        Number of rounds of the run. Needed if ``evaluation.levels`` is ``last`` and, for the evaluation after the final
        round, if ``evaluation.every`` is above 1.
    round_timeout : float
        Upper bound on the seconds that a client may take to answer the queries of a round; up to 16 clients are queried
        at once. Flower does not tell a strategy the ``round_timeout`` of its ``ServerConfig``, so give the same number
        here.
    **options : Any
        All other arguments of ``heterofl_flwr.HeteroFL``. The names ``fraction_fit``, ``min_fit_clients``,
        ``min_evaluate_clients`` and ``min_available_clients`` of ``FedAvg`` work too.
    """

    def __init__(
        self,
        build: Build,
        mix: str | Mix = "a1-b1-c1-d1-e1",
        *,
        evaluate_fn: CentralEvaluation | None = None,
        on_fit_config_fn: ConfigFn | None = None,
        on_evaluate_config_fn: ConfigFn | None = None,
        initial_parameters: Parameters | None = None,
        fit_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        evaluate_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        num_rounds: int = 0,
        round_timeout: float = 3600.0,
        **options: Any,
    ) -> None:
        if twice := [name for name, flower_name in CLASSIC.items() if {name, flower_name} <= options.keys()]:
            names = ", ".join(f"{name} and {CLASSIC[name]}" for name in twice)
            raise ConfigError(f"found {names}, which are two names of one argument: leave one of the two out")
        for name in options.keys() - CLASSIC.keys() - signature(heterofl.HeteroFL).parameters.keys():
            if near := get_close_matches(name, signature(HeteroFL).parameters, n=1, cutoff=0.75):
                raise TypeError(f"HeteroFL has no argument {name}: did you mean {near[0]}?")
        named = {CLASSIC.get(name, name): value for name, value in options.items() if name not in LACKS}
        self._inner = _Strategy(build, mix, **named)
        inner = self._inner.options
        unsupported = {
            "sampling.spare": inner.sampling.spare,
            "slicing.by_level": inner.slicing.by_level,
            "training.upload": inner.training.upload != FULL_PRECISION,
        }
        # A NumPyClient cannot run the client half of a stage.
        unsupported |= {stage_name(stage): stage.client() is not None for stage in inner.stages}
        if lacks := sorted({name for name, is_set in unsupported.items() if is_set} | (LACKS & options.keys())):
            raise ConfigError(f"the classic API has no place for {', '.join(lacks)}; use heterofl_flwr.HeteroFL")
        check_count("num_rounds", num_rounds, 0)
        check_seconds("round_timeout", round_timeout)
        check_takes("evaluate_fn", evaluate_fn, "server_round", "parameters", "config")
        check_takes("on_fit_config_fn", on_fit_config_fn, "server_round")
        check_takes("on_evaluate_config_fn", on_evaluate_config_fn, "server_round")
        check_takes("fit_metrics_aggregation_fn", fit_metrics_aggregation_fn, "metrics")
        check_takes("evaluate_metrics_aggregation_fn", evaluate_metrics_aggregation_fn, "metrics")
        if inner.evaluation.levels == "last" and not num_rounds:
            raise ConfigError(
                "evaluation.levels is 'last', and Flower does not tell the strategy which round is the last; expected "
                "num_rounds=, the number of rounds of the run"
            )
        self.federation = self._inner.federation
        self._inner.num_rounds, self._inner.timeout = num_rounds, round_timeout
        self.evaluate_fn, self.initial_parameters = evaluate_fn, initial_parameters
        self.on_fit_config_fn, self.on_evaluate_config_fn = on_fit_config_fn, on_evaluate_config_fn
        self.fit_metrics_aggregation_fn = fit_metrics_aggregation_fn
        self.evaluate_metrics_aggregation_fn = evaluate_metrics_aggregation_fn
        self._inner.clients = Clients(self.federation)
        self._sent: dict[int, Message] = {}

    def start(self, *arguments: object, **keywords: object) -> NoReturn:
        """Raise ``ConfigError``, because ``start`` needs the Message API: use ``heterofl_flwr.HeteroFL``."""
        raise ConfigError(
            "HeteroFL of heterofl_flwr.classic is for ServerAppComponents(strategy=...); for start(grid) import "
            "HeteroFL from heterofl_flwr"
        )

    @property
    def log(self) -> RoundRecord:
        """The record of the current round."""
        return self._inner.log

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """Return the initial parameters of the global model."""
        if self._inner.clients.manager is not None:  # the strategy was used in an earlier run
            self._inner.reset()
            self._inner.clients = Clients(self.federation)
        self._inner.summary()
        if self.initial_parameters is None:
            return record_parameters(pack_tensors(self.federation.architecture.initial_state()))
        arrays, model = read_parameters(self.initial_parameters), self.federation.architecture.model
        known = self._names, list(exchanged_parameters(model)), list(model.state_dict())  # shared; all; with buffers
        names = next((names for names in known if len(names) == len(arrays)), None)
        if names is None:
            raise ConfigError(
                f"initial_parameters has {len(arrays)} arrays; expected {len(known[1])}, as from parameters_of(model) "
                f"with the global model, or {len(known[2])}, as in its state_dict"
            )
        tensors = read_tensors(name_arrays(names, arrays))
        return record_parameters(pack_tensors(self.federation.architecture.check_state(tensors)))

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Return a ``FitIns`` with the client's slice of the model for each sampled client."""
        config, grid = self._config(self.on_fit_config_fn, server_round), self._grid(client_manager)
        ensure_identity()
        sent = self._inner.configure_train(server_round, self._record(parameters), config, grid)
        return self._instructions(sent, messages.TASK_TRAIN, FitIns)

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Aggregate the results. Return the new global model and training metrics."""
        current = self._inner.open_round()
        answers = collect_answers([*results, *failures])
        self._leave_out_dropped(answers, failures)
        arrays, _ = self._inner.aggregate_train(server_round, to_replies(self._sent, answers, failures))
        host_log.info("%s", self.log.line())
        counted = [answers[number] for number in current.answers]
        metrics = self._aggregated(self.fit_metrics_aggregation_fn, counted, self.log.train)
        return record_parameters(arrays or ArrayRecord()), metrics

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Return an ``EvaluateIns`` with the model for each sampled client."""
        config, grid = self._config(self.on_evaluate_config_fn, server_round), self._grid(client_manager)
        ensure_identity()
        sent = self._inner.configure_evaluate(server_round, self._record(parameters), config, grid)
        return self._instructions(sent, messages.TASK_EVALUATE, EvaluateIns)

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Return the mean loss and metrics of the clients that evaluated the full model; (None, {}) without answers."""
        current, answers = self._inner.current, collect_answers([*results, *failures])
        self._leave_out_dropped(answers, failures)
        means = self._inner.aggregate_evaluate(server_round, to_replies(self._sent, answers, failures))
        if means is None or not isinstance(current, EvaluationRound):
            return None, {}
        loss, function = self.log.evaluate.get("loss"), self.evaluate_metrics_aggregation_fn
        counted = [answers[number] for number in current.global_answers()]
        metrics = self._aggregated(function, counted, self.log.evaluate)
        return loss, {key: value for key, value in metrics.items() if function or key != "loss"}

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, dict[str, Scalar]] | None:
        """Evaluate the global model with ``evaluate_fn``. Return None if no ``evaluate_fn`` was given."""
        if self.evaluate_fn is None:
            return None
        evaluated = record_parameters(self._inner.evaluated_arrays(self._record(parameters)))
        with refusing_unmeasured("evaluate_fn"):
            return self.evaluate_fn(server_round, parameters_to_ndarrays(evaluated), {})

    @property
    def _names(self) -> list[str]:
        return list(self.federation.architecture.global_plan.axes)

    def _record(self, parameters: Parameters) -> ArrayRecord:
        return name_arrays(self._names, read_parameters(parameters))

    def _config(self, config_fn: ConfigFn | None, server_round: int) -> ConfigRecord:
        config = check_scalars("the config for clients", config_fn(server_round) if config_fn else {})
        proximal = {PROXIMAL_MU} if self._inner.options.training.proximal_mu else set()
        messages.check_own_keys(config, RESERVED | proximal)
        return ConfigRecord({**config})

    def _grid(self, client_manager: ClientManager) -> Grid:
        self._inner.clients.connect(client_manager)
        return cast("Grid", self._inner.clients)

    def _instructions(
        self, sent: Sequence[Message], task: str, kind: Callable[[Parameters, dict[str, Scalar]], Instruction]
    ) -> list[tuple[ClientProxy, Instruction]]:
        """Return pairs (client, instruction). ``kind`` is the class of the instructions: ``FitIns`` or ``EvaluateIns``.

        Messages with the same records share one ``Parameters``.
        """
        self._sent = {message.metadata.dst_node_id: message for message in sent}
        packets: dict[tuple[int, ...], Parameters] = {}
        instructions = []
        for number, message in self._sent.items():
            set_metadata(message, message_id=str(number))  # the id that the reply refers to
            records = reading.array_records(message.content).values()
            packet = packets.setdefault(tuple(map(id, records)), record_parameters(*records))
            config = to_scalars(message, task, self._inner.options.averaging.fidelity.moments)
            instructions.append((self._inner.clients.proxies[number], kind(packet, config)))
        return instructions

    def _leave_out_dropped(self, answers: Collection[int], failures: Sequence[object]) -> None:
        """Remove clients from the round whose message or result a subclass dropped."""
        current = self._inner.current
        # An exception does not tell whose it is; with one, a client without an answer may be the client that failed.
        if current is None or not answers or any(isinstance(failure, BaseException) for failure in failures):
            return
        for number in self._sent.keys() - set(answers):
            current.leave_out(number, reply_bytes=0)  # whether the message was sent is unknown
            del self._sent[number]
        self._inner.round_messages.sent = list(self._sent.values())

    def _aggregated(
        self,
        function: MetricsAggregationFn | None,
        answers: Sequence[FitRes | EvaluateRes],
        means: dict[str, float],
    ) -> dict[str, Scalar]:
        if function is None or not answers:
            return dict(means)
        metrics = function([(answer.num_examples, reported_metrics(answer)) for answer in answers])
        if not isinstance(metrics, Mapping):
            raise ConfigError(f"a metrics_aggregation_fn returned {metrics!r}; expected a dictionary of metrics")
        self.log.note_computed(means, metrics)
        return metrics
