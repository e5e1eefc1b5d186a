"""Clients of the classic API: what they say of themselves, and what they answer."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flwr.common import Code, EvaluateRes, FitIns, FitRes, GetPropertiesIns, Scalar
from flwr.server.client_proxy import ClientProxy

from heterofl_flwr import messages
from heterofl_flwr.classic.arrays import count_bytes, moments_from_arrays, name_arrays, unpack
from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.exchange import explained
from heterofl_flwr.federation.engine import QUERY_SECONDS
from heterofl_flwr.federation.evaluation_round import Norms
from heterofl_flwr.federation.limits import Limits, read_number, read_numbers, short
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.federation.round import Fault, TrainReply
from heterofl_flwr.grids.guarded import crosses_superlink
from heterofl_flwr.nn.moments import Moments

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Failures = Sequence[tuple[ClientProxy, FitRes] | tuple[ClientProxy, EvaluateRes] | BaseException]

_THREADS = 16
_LONGEST_FAULT = 300
_FIT_SECONDS = 3600.0


def ask_all(ask: Callable[[Asked], Answer], clients: Mapping[int, Asked]) -> dict[int, Answer]:
    """Return what each client answers, by number; all are asked at the same time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(clients, pool.map(ask, clients.values()), strict=True))


def crosses_network(proxy: ClientProxy) -> bool:
    """Whether a client is on another machine: behind a SuperLink, or at the other end of ``start_server``'s bridge."""
    return crosses_superlink(getattr(proxy, "grid", None)) or hasattr(proxy, "bridge")


def query_properties(proxy: ClientProxy) -> tuple[Capability | ReplyError, bool]:
    """Return what a client can hold, or why its answer is not usable, and whether its ``fit`` answers for moments."""
    try:
        answer = proxy.get_properties(GetPropertiesIns({}), timeout=QUERY_SECONDS, group_id=0)
        if answer.status.code != Code.OK:
            lacks = answer.status.code == Code.GET_PROPERTIES_NOT_IMPLEMENTED
            cause = f"; {messages.NOT_CONVERTED}" if lacks else ""
            raise ReplyError(f"{answer.status.message or answer.status.code.name}{cause}")
        reported = answer.properties
        capability = Capability(
            capacity=_read_capacity(reported),
            partition=messages.read_optional(reported, messages.PARTITION, int, "it"),
            num_partitions=messages.read_optional(reported, messages.NUM_PARTITIONS, int, "it"),
        )
        return capability, reported.get(messages.MOMENTS) is True
    except Exception as error:  # each of Flower's runtimes raises errors of its own
        return ReplyError(short(str(error))), False


def read_fit(answer: FitRes, plan: Plan, limits: Limits, sender: str) -> TrainReply:
    """Return what a client's answer to ``fit`` holds; reject it if anything is missing or of another type."""
    number = read_number(answer.num_examples, limits.examples, sender)
    arrays = unpack(answer.parameters, sender, [math.prod(shape) for shape in plan.shapes.values()])
    tensors, labels = name_arrays(plan.axes, arrays, sender), answer.metrics.get(messages.LABELS)
    try:
        classes = None if labels is None else [int(label) for label in str(labels).split(",") if label.strip()]
    except ValueError as error:
        raise messages.unexpected(labels, messages.LABELS, "whole numbers, as in '3,7'", sender) from error
    return TrainReply(
        tensors=tensors,
        num_examples=number,
        labels=classes,
        capacity=_read_capacity(answer.metrics),
        metrics=_read_metrics(answer.metrics, sender),
        num_bytes=count_bytes(answer.parameters),
    )


def read_evaluate(answer: EvaluateRes, limits: Limits, sender: str) -> tuple[int, dict[str, float]]:
    """Return the number of examples and the metrics, with the loss among them."""
    number = read_number(answer.num_examples, limits.examples, sender)
    if isinstance(answer.loss, bool) or not isinstance(answer.loss, int | float):
        raise messages.unexpected(answer.loss, "loss", "a number", sender)
    return number, _read_metrics({**answer.metrics, "loss": answer.loss}, sender)


def _read_metrics(metrics: Mapping[str, Scalar], sender: str) -> dict[str, float]:
    others = (messages.LABELS, messages.CAPACITY)
    return read_numbers(((key, value) for key, value in metrics.items() if key not in others), sender)


def _read_capacity(reported: Mapping[str, Scalar]) -> float | None:
    value = reported.get(messages.CAPACITY)
    try:
        return None if value is None else rate_of(value)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ReplyError(f"the capacity it reports is not usable: {error}") from error


def read_failures(failures: Failures, ids: Mapping[str, int]) -> tuple[dict[int, Fault], Fault]:
    """Return why clients failed: by number, and as one fault where Flower names no client."""
    by_number: dict[int, Fault] = {}
    unnamed: set[str] = set()
    for failure in failures:
        if isinstance(failure, BaseException):
            unnamed.add(explained(f"{type(failure).__name__}: {failure}"[:_LONGEST_FAULT]))
            continue
        proxy, answer = failure
        if (number := ids.get(proxy.cid)) is None:
            continue
        reason, code = short(explained(answer.status.message or answer.status.code.name)), answer.status.code
        by_number[number] = Fault(reason, "no handler" if code == Code.EVALUATE_NOT_IMPLEMENTED else "failed")
    return by_number, Fault("; ".join(["no result", *sorted(unnamed)[:3]]))


def likely_cause(answer: FitRes, plan: Plan) -> str:
    """Return what most likely is wrong with a rejected answer: arrays have no names, so their bytes tell."""
    whole = sum(math.prod(axis.full for axis in axes) for axes in plan.axes.values())
    looks_whole = plan.parameters < whole and count_bytes(answer.parameters) >= 4 * whole
    return f"; {messages.NOT_CONVERTED}" if looks_whole else ""


def fit(asked: tuple[ClientProxy, FitIns]) -> FitRes | Exception:
    """Return a client's answer to an instruction, or the error that it raised."""
    try:
        proxy, instruction = asked
        return proxy.fit(instruction, timeout=_FIT_SECONDS, group_id=0)
    except Exception as error:  # each of Flower's runtimes raises errors of its own
        return error


def read_moments(answer: FitRes | Exception, kind: Variant, norms: Norms, sender: str) -> dict[float, Moments]:
    """Return a client's moments by rate; reject what is far larger than those of these layers' channels."""
    if isinstance(answer, Exception):
        raise ReplyError(f"{sender} failed: {type(answer).__name__}: {answer}") from answer
    if answer.status.code != Code.OK:
        raise ReplyError(f"{sender} failed: {answer.status.message or answer.status.code.name}")
    # Of each layer come a count and two sums.
    sizes = [size for own in norms.values() for channels in own.values() for size in (1, channels, channels)]
    arrays = unpack(answer.parameters, sender, sizes)
    return moments_from_arrays(arrays, kind, {rate: list(own) for rate, own in norms.items()}, sender)
