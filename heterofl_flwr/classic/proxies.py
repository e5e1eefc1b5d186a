"""Clients of the classic API: what they say of themselves, and what they answered."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from reprlib import repr as shown
from typing import TypeVar

from flwr.common import Code, EvaluateRes, FitIns, FitRes, GetPropertiesIns, Scalar
from flwr.server.client_proxy import ClientProxy

from heterofl_flwr import messages
from heterofl_flwr.classic.arrays import moments_from_arrays, named, size_of, unpack
from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ReplyError
from heterofl_flwr.federation.engine import QUERY_SECONDS
from heterofl_flwr.federation.evaluation_round import Norms
from heterofl_flwr.federation.limits import Limits, read_number, read_numbers, short
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.federation.round import TrainReply
from heterofl_flwr.grids.guarded import crosses_superlink
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.strategies.replies import explained

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Failures = Sequence[tuple[ClientProxy, FitRes] | tuple[ClientProxy, EvaluateRes] | BaseException]

_THREADS = 16
_LONGEST_FAULT = 300


@dataclass(frozen=True, slots=True)
class Properties:
    """What a client says of itself, and whether its ``fit`` answers questions for moments."""

    capability: Capability
    gives_moments: bool


def ask_all(ask: Callable[[Asked], Answer], clients: Iterable[Asked]) -> list[Answer]:
    """Return what each client answers, asked at the same time, in their order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(ask, clients))


def crosses_network(proxy: ClientProxy) -> bool:
    """Whether a client is on another machine: behind a SuperLink, or at the other end of ``start_server``'s bridge."""
    return crosses_superlink(getattr(proxy, "grid", None)) or hasattr(proxy, "bridge")


def query_properties(proxy: ClientProxy) -> Properties | None:
    """Ask one client what it can hold; None, and a warning, if it gives no usable answer."""
    try:
        answer = proxy.get_properties(GetPropertiesIns({}), timeout=QUERY_SECONDS, group_id=0)
        if answer.status.code != Code.OK:
            raise ReplyError(answer.status.message or answer.status.code.name)
        reported = answer.properties
        capability = Capability(
            capacity=_capacity(reported),
            partition=_whole(reported, messages.PARTITION),
            num_partitions=_whole(reported, messages.NUM_PARTITIONS),
        )
        return Properties(capability, gives_moments=reported.get(messages.MOMENTS) is True)
    except Exception as error:  # each of Flower's runtimes raises errors of its own
        logger.warning("client %s did not say what it can hold: %s", proxy.cid, error)
        return None


def read_fit(answer: FitRes, plan: Plan, limits: Limits, sender: str) -> TrainReply:
    """Return what a client's answer to ``fit`` holds; refuse it if anything is missing or of another type."""
    number = read_number(answer.num_examples, limits.examples, sender)
    arrays = unpack(answer.parameters, sender, [math.prod(shape) for shape in plan.shapes.values()])
    return TrainReply(
        sub=named(plan.axes, arrays, sender),
        num_examples=number,
        labels=_labels(answer.metrics, sender),
        capacity=_capacity(answer.metrics),
        metrics=read_metrics(answer.metrics, sender),
        num_bytes=size_of(answer.parameters),
    )


def read_evaluate(answer: EvaluateRes, limits: Limits, sender: str) -> tuple[int, dict[str, float]]:
    """Return the number of examples and the metrics, with the loss among them."""
    number = read_number(answer.num_examples, limits.examples, sender)
    if isinstance(answer.loss, bool) or not isinstance(answer.loss, int | float):
        raise ReplyError(f"{sender} sent {shown(answer.loss)} as loss, expected a number")
    return number, read_metrics({**answer.metrics, "loss": answer.loss}, sender)


def read_metrics(metrics: Mapping[str, Scalar], sender: str) -> dict[str, float]:
    """Return the numbers among metrics; labels and capacity are none."""
    return read_numbers(
        ((key, value) for key, value in metrics.items() if key not in (messages.LABELS, messages.CAPACITY)), sender
    )


def read_failures(failures: Failures, ids: Mapping[str, int]) -> tuple[dict[int, str], str]:
    """Return why clients failed, by number, and as one text what Flower says without naming a client."""
    by_number: dict[int, str] = {}
    unnamed: list[str] = []
    for failure in failures:
        if isinstance(failure, BaseException):
            unnamed.append(explained(f"{type(failure).__name__}: {failure}"[:_LONGEST_FAULT]))
        elif failure[0].cid in ids:
            status = failure[1].status
            by_number[ids[failure[0].cid]] = short(explained(status.message or status.code.name))
    return by_number, "; ".join(sorted(set(unnamed))[:3])


def likely_cause(answer: FitRes, plan: Plan) -> str:
    """Return what most likely is wrong with a refused answer: arrays have no names, so their bytes tell."""
    whole = sum(math.prod(axis.full for axis in axes) for axes in plan.axes.values())
    looks_whole = plan.parameters < whole and size_of(answer.parameters) >= 4 * whole
    return f"; {messages.NOT_CONVERTED}" if looks_whole else ""


def lacking_evaluate(failures: Failures, ids: Mapping[str, int]) -> set[int]:
    """Return the clients, by number, that failed because they have no ``evaluate``."""
    named = [failure for failure in failures if not isinstance(failure, BaseException)]
    lacking = [proxy.cid for proxy, answer in named if answer.status.code == Code.EVALUATE_NOT_IMPLEMENTED]
    return {ids[cid] for cid in lacking if cid in ids}


def _capacity(reported: Mapping[str, Scalar]) -> float | None:
    value = reported.get(messages.CAPACITY)
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise ReplyError(f"{shown(value)} is no capacity: expected a level or a rate")
    try:
        return rate_of(value)
    except ValueError as error:
        raise ReplyError(f"the capacity it reports is not usable: {error}") from error


def _whole(reported: Mapping[str, Scalar], key: str) -> int | None:
    value = reported.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ReplyError(f"{shown(value)} as {key}, expected a whole number")
    return value


def _labels(metrics: Mapping[str, Scalar], sender: str) -> list[int] | None:
    value = metrics.get(messages.LABELS)
    if value is None:
        return None
    try:
        return [int(label) for label in str(value).split(",") if label.strip()]
    except ValueError as error:
        raise ReplyError(f"{sender} sent {shown(value)} as labels, expected whole numbers, as in '3,7'") from error


_SECONDS = 3600.0


def ask_for_moments(asked: Mapping[int, tuple[ClientProxy, FitIns]]) -> dict[int, FitRes | Exception]:
    """Return what clients answer that are asked for static batch norm moments."""

    def ask(number: int) -> FitRes | Exception:
        try:
            proxy, instruction = asked[number]
            return proxy.fit(instruction, timeout=_SECONDS, group_id=0)
        except Exception as error:  # each of Flower's runtimes raises errors of its own
            return error

    return dict(zip(asked, ask_all(ask, asked), strict=True))


def read_moments(answer: FitRes | Exception, kind: Variant, norms: Norms, sender: str) -> dict[float, Moments]:
    """Return a client's moments by rate; refuse what is far larger than those of these layers' channels."""
    if isinstance(answer, Exception):
        raise ReplyError(f"{sender} failed: {type(answer).__name__}: {answer}") from answer
    if answer.status.code != Code.OK:
        raise ReplyError(f"{sender} failed: {answer.status.message or answer.status.code.name}")
    # Of each layer come a count and two sums.
    sizes = [size for own in norms.values() for channels in own.values() for size in (1, channels, channels)]
    arrays = unpack(answer.parameters, sender, sizes)
    return moments_from_arrays(arrays, kind, {rate: list(own) for rate, own in norms.items()}, sender)
