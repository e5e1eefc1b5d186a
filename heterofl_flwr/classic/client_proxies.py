"""``Clients``, an adapter from a ``ClientManager`` to a ``Grid``."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import Message
from flwr.common import Code, EvaluateRes, FitIns, FitRes, GetPropertiesIns, GetPropertiesRes, Status
from flwr.server.client_manager import ClientManager, SimpleClientManager
from flwr.server.client_proxy import ClientProxy

from heterofl_flwr.classic.translation import (
    Reply,
    error_text,
    fail,
    moment_names,
    record_parameters,
    to_reply,
    to_scalars,
)
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.federation.round_record import host_log
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.compat import set_metadata
from heterofl_flwr.transport.relay import crosses_superlink

_THREADS = 16

Answer = TypeVar("Answer", FitRes, EvaluateRes)


def node_of(proxy: ClientProxy) -> int:
    """Return a client's id as an integer; hash an id that is not a number."""
    return int(proxy.cid) if proxy.cid.isdecimal() else derive(0, "client", proxy.cid)


@dataclass
class Clients:
    """Adapter from a ``ClientManager`` to a ``Grid``."""

    federation: Federation
    manager: ClientManager | None = None
    proxies: dict[int, ClientProxy] = field(default_factory=dict)
    promised: set[int] = field(default_factory=set)  # clients whose ``fit`` can return moments

    @property
    def are_remote(self) -> bool:
        """Whether at least one client may be on another machine."""
        return any(
            hasattr(proxy, "bridge") or crosses_superlink(getattr(proxy, "grid", None))
            for proxy in self.proxies.values()
        )

    def connect(self, manager: ClientManager) -> None:
        """Take the clients from ``manager``; warn, once in a run, if its class has a ``sample`` of its own."""
        if self.manager is None and type(manager).sample is not SimpleClientManager.sample:
            host_log.warning(
                "HeteroFL samples the clients of a round itself and never calls %s.sample: to choose others, leave "
                "clients out in an overridden configure_fit or configure_evaluate",
                type(manager).__name__,
            )
        self.manager = manager

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the connected clients."""
        if self.manager is not None:
            self.manager.num_available()  # under a ServerApp, this looks for new nodes
            self.proxies = {node_of(proxy): proxy for proxy in dict(self.manager.all()).values()}
        return list(self.proxies)

    def send_and_receive(self, sent: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Call ``get_properties`` or ``fit`` of each message's client in parallel; return replies in message order."""
        with ThreadPoolExecutor(_THREADS) as pool:
            calls = [(message, pool.submit(self._ask, message, timeout)) for message in sent]
        # Not in the threads: numpy parses array headers here, which fails in Python 3.11.7 in two threads at once.
        return [to_reply(message, *call.result()) for message, call in calls]

    def _ask(self, message: Message, timeout: float | None) -> tuple[Reply | Exception, list[str]]:
        """Return a client's answer or error, and the names of the moments in the answer.

        A capability query calls ``get_properties``. A moments query calls ``fit`` if the client can return moments;
        otherwise the answer is empty.
        """
        number, names = message.metadata.dst_node_id, list[str]()
        set_metadata(message, message_id=str(number))  # the id that the reply refers to
        try:
            if message.metadata.message_type == messages.QUERY_CAPABILITY:
                properties = self.proxies[number].get_properties(GetPropertiesIns({}), timeout=timeout, group_id=0)
                promises = properties.properties.get(messages.MOMENTS) is True
                (self.promised.add if promises else self.promised.discard)(number)
                return properties, names
            if number not in self.promised:  # an empty answer, as from a node without data for moments
                return GetPropertiesRes(Status(Code.OK, ""), {}), names
            config = reading.read_config(message)
            kind = str(config[messages.MOMENTS_KIND])
            layers = {rate: self.federation.architecture.norms(rate) for rate in reading.read_rates(config)}
            names = moment_names(kind, layers)
            parameters = record_parameters(*reading.array_records(message.content).values())
            instruction = FitIns(parameters, to_scalars(message, messages.TASK_MOMENTS, kind))
            return self.proxies[number].fit(instruction, timeout=timeout, group_id=0), names
        except Exception as error:  # the error depends on Flower's runtime
            return error, names


def collect_answers(results: Sequence[tuple[ClientProxy, Answer] | BaseException]) -> dict[int, Answer]:
    """Return the first answer of each client, by client id."""
    return {node_of(result[0]): result[1] for result in reversed(results) if not isinstance(result, BaseException)}


def to_replies(
    sent: Mapping[int, Message],
    answers: Mapping[int, Answer],
    failures: Sequence[tuple[ClientProxy, Answer] | BaseException],
) -> Iterator[Message]:
    """Yield a reply to each message: the client's answer, or an error reply if the client did not answer.

    Flower does not tell which client raised an error, so each error reply lists up to three of the round's errors.
    """
    unnamed = [failure for failure in failures if isinstance(failure, BaseException)]
    errors: list[str] = sorted({error_text(error)[:300] for error in unnamed})
    for number, message in sent.items():
        if number in answers:
            yield to_reply(message, answers[number])
        else:
            yield fail(message, "; ".join(["no result", *errors[:3]]))
