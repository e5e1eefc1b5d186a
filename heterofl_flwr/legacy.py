"""HeteroFL for Flower's classic API: ``flwr.server.strategy.Strategy`` and ``NumPyClient``.

The strategy behaves as ``heterofl_flwr.HeteroFL`` does, over the same core. On the client, ``submodel`` and
``parameters_of`` stand around the user's own ``fit``; labels travel as text in ``metrics["labels"]``::

    class Client(NumPyClient):
        def get_properties(self, config):
            return properties_of(self.context)

        def fit(self, parameters, config):
            model = submodel(parameters, config, build)
            ...
            return parameters_of(model), number, {"labels": labels_text(classes)}
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from flwr.common import (
    Code,
    Context,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    GetPropertiesIns,
    NDArrays,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy
from torch import Tensor, nn

from heterofl_flwr import messages as wire
from heterofl_flwr.client import Build, capability_of, fresh_model, load_parameters
from heterofl_flwr.core.seeds import derive
from heterofl_flwr.errors import ConfigError, HeteroFLError, ReplyError
from heterofl_flwr.methods.base import HeteroFLBase, TrainReply
from heterofl_flwr.methods.failure import RoundError
from heterofl_flwr.methods.nodes import Capability

logger = logging.getLogger(__name__)

CentralEvaluation = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None]

_QUERY_SECONDS = 60.0
_QUERY_THREADS = 16


class HeteroFL(HeteroFLBase, Strategy):
    """Train one global model over clients of unequal size, through Flower's classic API.

    Parameters
    ----------
    evaluate_fn : Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None] | None
        Evaluates the global model on the server: from round, parameters and an empty config to loss and metrics.
    build, mix, **options
        Those of ``HeteroFLBase``. The classic API has no message for static batch norm moments, so clients evaluate
        batch norm with the statistics of each batch.
    """

    def __init__(
        self, build: Build, mix: str = "a1-b1-c1-d1-e1", *, evaluate_fn: CentralEvaluation | None = None, **options: Any
    ) -> None:
        super().__init__(build, mix, **options)
        self._evaluate_fn = evaluate_fn
        self._ids: dict[str, int] = {}

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """Return the parameters of a freshly built global model."""
        del client_manager
        self.summary()
        return _pack(self.federation.initial_state().values())

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Return an instruction for each client of the round, with its slice and its rate."""
        proxies = self._available(client_manager)
        state = self._unpack(parameters)
        rates = self._begin(server_round, sorted(proxies), state)
        slices = {
            rate: _pack(self.federation.plan(rate).extract(state).values()) for rate in sorted(set(rates.values()))
        }
        self.log.bytes_down = sum(_size(slices[rate]) for rate in rates.values())
        return [
            (proxies[node_id], FitIns(slices[rate], dict(self._told(server_round, node_id, rate))))
            for node_id, rate in rates.items()
        ]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Add the results in the order in which the instructions went out, and return the new global model."""
        answers = {self._ids[proxy.cid]: answer for proxy, answer in results if proxy.cid in self._ids}
        faults = _faults(failures, self._ids)
        for node_id in self._rates:
            # Each is freed as soon as it is added.
            answer = answers.pop(node_id, None)
            fault = faults.get(node_id, "no result") if answer is None else None
            if answer is not None:
                try:
                    self._take(node_id, self._read(node_id, answer))
                except ReplyError as error:
                    fault = str(error)
            if fault is not None:
                self._refuse(server_round, node_id, fault)
        new = self._finish(server_round)
        return _pack(new.values()), dict(self.log.train)

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Return an instruction for each client that evaluates."""
        if not self.evaluation.due(server_round, 0):
            return []
        proxies = self._available(client_manager)
        rates_of = self._evaluators(server_round, sorted(proxies))
        state = self._unpack(parameters)
        slices = {
            rate: _pack(self.federation.plan(rate).extract(state).values())
            for rate in {rates[0] for rates in rates_of.values()}
        }
        return [
            (proxies[node_id], EvaluateIns(slices[rates[0]], dict(self._told(server_round, node_id, rates[0]))))
            for node_id, rates in rates_of.items()
        ]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Return the mean loss over the clients, weighted by examples, and their mean metrics."""
        for fault in _faults(failures, self._ids).values():
            logger.warning("round %d: a client did not evaluate: %s", server_round, fault)
        answers = [
            (answer.num_examples, {**_numbers(answer.metrics), "loss": float(answer.loss)})
            for _, answer in sorted(results, key=lambda pair: self._ids.get(pair[0].cid, -1))
        ]
        if not answers:
            return None, {}
        summary = self._summarise(answers)
        return summary.pop("loss", None), dict(summary)

    def evaluate(self, server_round: int, parameters: Parameters) -> tuple[float, dict[str, Scalar]] | None:
        """Evaluate the global model on the server, if there is a function for it."""
        if self._evaluate_fn is None:
            return None
        return self._evaluate_fn(server_round, parameters_to_ndarrays(parameters), {})

    def _available(self, client_manager: ClientManager) -> dict[int, ClientProxy]:
        """Return the clients by number, having asked the new ones what they can hold."""
        number = max(self.min_available_nodes, 1)
        if not client_manager.wait_for(number, timeout=int(self.wait)):
            raise RoundError(
                f"{client_manager.num_available()} clients are there after {self.wait:g} s, expected at least "
                f"{number}: start more, or ask for fewer (min_available_nodes)"
            )
        proxies = client_manager.all()
        new = [cid for cid in sorted(proxies) if cid not in self._ids]
        for cid in new:
            self._ids[cid] = len(self._ids)
        with ThreadPoolExecutor(_QUERY_THREADS) as pool:
            answers = dict(zip(new, pool.map(_ask, (proxies[cid] for cid in new)), strict=True))
        silent = [cid for cid in new if answers[cid] is None]
        if silent:
            logger.warning(
                "%d new clients did not say what they can hold and train at the smallest rate, %g: %s",
                len(silent),
                self.federation.mix.rates[-1],
                ", ".join(silent[:3]),
            )
        self.federation.register({self._ids[cid]: answers[cid] for cid in new})
        return {self._ids[cid]: proxy for cid, proxy in proxies.items()}

    def _read(self, node_id: int, answer: FitRes) -> TrainReply:
        """Return what a client's answer holds; refuse it if it cannot be read."""
        plan = self.federation.plan(self._rates[node_id])
        try:
            arrays = parameters_to_ndarrays(answer.parameters)
            labels = _read_labels(answer.metrics.get(wire.LABELS))
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise ReplyError(f"client {node_id} sent an answer that cannot be read: {error}") from error
        if len(arrays) != len(plan.axes):
            raise ReplyError(f"client {node_id} sent {len(arrays)} arrays, expected {len(plan.axes)}")
        sub = {name: torch.from_numpy(array) for name, array in zip(plan.axes, arrays, strict=True)}
        capacity = answer.metrics.get(wire.CAPACITY)
        return TrainReply(
            sub=sub,
            num_examples=answer.num_examples,
            labels=labels,
            capacity=float(capacity) if isinstance(capacity, int | float) else None,
            metrics=_numbers(answer.metrics),
            num_bytes=_size(answer.parameters),
        )

    def _unpack(self, parameters: Parameters) -> dict[str, Tensor]:
        names = self.federation.plan(self.federation.mix.global_rate).axes
        arrays = parameters_to_ndarrays(parameters)
        if len(arrays) != len(names):
            raise ConfigError(f"the global model has {len(names)} parameters, but {len(arrays)} arrays were given")
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


def submodel(parameters: NDArrays, config: Mapping[str, Scalar], build: Build) -> nn.Module:
    """Return the model at the instruction's rate with these parameters; seeds torch from the instruction."""
    missing = [key for key in (wire.RATE, wire.SEED, wire.SERVER_ROUND, wire.PARTITION) if key not in config]
    if missing:
        raise ReplyError(f"the instruction lacks {', '.join(missing)}: is the strategy heterofl_flwr.legacy.HeteroFL?")
    model = fresh_model(build, float(config[wire.RATE]))
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if len(names) != len(parameters):
        raise ReplyError(f"the server sent {len(parameters)} arrays, but the model built here has {len(names)}")
    load_parameters(model, {name: torch.as_tensor(array) for name, array in zip(names, parameters, strict=True)})
    seed, *purpose = (int(config[key]) for key in (wire.SEED, wire.SERVER_ROUND, wire.PARTITION))
    torch.manual_seed(derive(seed, "client", *purpose))
    return model


def parameters_of(model: nn.Module) -> NDArrays:
    """Return a model's parameters in the order in which the strategy expects them."""
    return [own.detach().cpu().numpy() for _, own in model.named_parameters(remove_duplicate=False)]


def labels_text(labels: Iterable[int]) -> str:
    """Return a client's classes as the text that travels in ``metrics["labels"]``."""
    return ",".join(str(label) for label in sorted({int(label) for label in labels}))


def properties_of(context: Context) -> dict[str, Scalar]:
    """Return what ``get_properties`` answers: level or rate and partition, from the node's own config."""
    return dict(capability_of(context))  # type: ignore[arg-type]


def _ask(proxy: ClientProxy) -> Capability | None:
    """Ask one client what it can hold; None if it gives no usable answer."""
    try:
        answer = proxy.get_properties(GetPropertiesIns({}), timeout=_QUERY_SECONDS, group_id=0)
        if answer.status.code != Code.OK:
            return None
        said = answer.properties
        return Capability(
            capacity=float(said[wire.CAPACITY]) if wire.CAPACITY in said else None,
            partition=int(said[wire.PARTITION]) if wire.PARTITION in said else None,
            num_partitions=int(said[wire.NUM_PARTITIONS]) if wire.NUM_PARTITIONS in said else None,
        )
    except (HeteroFLError, ValueError, TypeError) as error:
        logger.warning("client %s: %s", proxy.cid, error)
        return None
    except Exception as error:  # each of Flower's runtimes raises errors of its own
        logger.warning("client %s could not be asked: %s", proxy.cid, error)
        return None


def _faults(
    failures: Sequence[tuple[ClientProxy, FitRes] | tuple[ClientProxy, EvaluateRes] | BaseException],
    ids: Mapping[str, int],
) -> dict[int, str]:
    """Return why clients failed, by number; a failure that names no client is logged."""
    faults: dict[int, str] = {}
    for failure in failures:
        if isinstance(failure, BaseException):
            logger.warning("a client failed: %s", failure)
        elif failure[0].cid in ids:
            faults[ids[failure[0].cid]] = failure[1].status.message or failure[1].status.code.name
    return faults


def _read_labels(value: Scalar | None) -> list[int] | None:
    if value is None:
        return None
    return [int(label) for label in str(value).split(",") if label.strip()]


def _numbers(metrics: Mapping[str, Scalar]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _pack(tensors: Iterable[Tensor]) -> Parameters:
    return ndarrays_to_parameters([tensor.detach().cpu().numpy() for tensor in tensors])


def _size(parameters: Parameters) -> int:
    return sum(len(tensor) for tensor in parameters.tensors)
