"""Base classes of the grids that run clients."""

import itertools
import logging
import math
import time
import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from heterofl_flwr.common.errors import ConfigError, HeteroFLError, check_count, check_takes, without_numbers
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.grids.call_app import Envelope
from heterofl_flwr.transport.compat import SUPERLINK_NODE_ID, Run, set_identity, set_metadata
from heterofl_flwr.transport.exchange import exchange
from heterofl_flwr.transport.messages import CONFIG, RATE

logger = logging.getLogger(__name__)


@dataclass(order=True, slots=True)
class Group:
    """Messages that a ClientApp answers in one call, each to a different node.

    A ``RayGrid`` runs groups in the order of ``push``, the number of the ``push_messages`` call. Groups of one push run
    in the order of ``urgency``, which is minus the expected time: the longest group runs first.
    """

    push: int
    urgency: float
    number: int
    messages: Sequence[Message] = field(compare=False)
    deaths: int = field(default=0, compare=False)  # number of actors that died while they ran this group
    stored: Mapping[int, object] = field(default_factory=dict, compare=False)  # references to records in Ray, by id()

    @property
    def ids(self) -> list[str]:
        """Ids of the messages."""
        return [message.metadata.message_id for message in self.messages]

    @property
    def nodes(self) -> list[int]:
        """Ids of the nodes that get the messages."""
        return [message.metadata.dst_node_id for message in self.messages]


def together(
    messages: Sequence[Message], most: Callable[[Message], int], *, by_rate: bool = True
) -> list[list[Message]]:
    """Divide messages into groups; the clients of a group may train together.

    Messages may share a group if they are ``train`` messages with a rate, go to different nodes and, if ``by_rate``,
    have the same rate. They are divided into groups of nearly equal size. Each other message is alone in its group.
    ``most`` returns the maximum size of a message's group. Messages to the same node keep their order.
    """
    turns: Counter[int] = Counter()
    alike: dict[tuple[int, float | None, int], list[Message]] = {}
    for position, message in enumerate(messages):
        node_id, rate = message.metadata.dst_node_id, _rate(message)
        key = (rate if by_rate else 0.0, 0) if rate is not None else (None, position)
        alike.setdefault((turns[node_id], *key), []).append(message)
        turns[node_id] += 1
    groups = []
    for _, some in sorted(alike.items(), key=lambda item: item[0][0]):  # by turn
        size = len(some)
        number = -(-size // min(map(most, some))) if size > 1 else 1
        groups += [some[i * size // number : (i + 1) * size // number] for i in range(number)]
    return groups


def _rate(message: Message) -> float | None:
    is_training = message.metadata.message_type == MessageType.TRAIN and message.has_content()
    config = message.content.get(CONFIG) if is_training else None
    rate = config.get(RATE) if isinstance(config, ConfigRecord) else None
    return rate if isinstance(rate, float) else None


class Runner(ABC):
    """Base class of objects that run clients and store their contexts."""

    poll_until = 0.0
    """Deadline for ``collect``, in seconds of ``time.monotonic``."""

    takes_groups = False
    """True if the ClientApp has ``train_cohort``, which answers several messages in one call."""

    gpu_workers = 1
    """Number of GPU workers, among which messages pushed together are divided.

    It is 1 on CPUs, so that groups, and thus rounding, do not depend on the number of CPU workers.
    """

    def __init__(self, contexts: dict[int, Context]) -> None:
        self._contexts = contexts
        self._groups: dict[str, Group] = {}  # by the id of each message that is unanswered and not cancelled
        self._done: dict[str, Message] = {}
        self._logged: set[str] = set()  # tracebacks of clients that were logged, without numbers

    @abstractmethod
    def submit(self, groups: Sequence[Group]) -> None:
        """Queue groups of messages."""

    @abstractmethod
    def wait(self, ids: Sequence[str], deadline: float) -> list[str]:
        """Wait at most until ``deadline`` (``time.monotonic``) for all replies; return the ids of answered messages."""

    def collect(self, ids: Sequence[str]) -> list[Message]:
        """Wait at most until ``poll_until`` for all replies; return and forget the replies that have arrived."""
        return [reply for id_ in self.wait(ids, self.poll_until) if (reply := self._done.pop(id_, None))]

    def cancel(self, ids: Sequence[str]) -> None:
        """Forget these messages and their replies."""
        for id_ in ids:
            self._groups.pop(id_, None)
            self._done.pop(id_, None)

    def cancel_all(self) -> None:
        """Forget all messages and their replies."""
        self.cancel([*self._groups, *self._done])

    def close(self) -> None:
        """Forget all messages and replies. A subclass with processes also ends them."""
        self._groups.clear()
        self._done.clear()

    def _keep(self, group: Group, answers: Sequence[Envelope]) -> None:
        """Store replies and contexts, and log errors, except for cancelled messages."""
        for message, (reply, context, trouble) in zip(group.messages, answers, strict=True):
            node_id, id_ = message.metadata.dst_node_id, message.metadata.message_id
            if self._groups.pop(id_, None) is None:
                continue
            if trouble and (cause := without_numbers(trouble)) not in self._logged:
                self._logged.add(cause)
                logger.error(
                    "partition %s failed to answer %r; the same error of other clients is not logged again:\n%s",
                    self._contexts[node_id].node_config["partition-id"],
                    message.metadata.message_type,
                    trouble,
                )
            if context is not None:
                self._contexts[node_id] = context
            set_metadata(reply, message_id=f"{id_}-reply")
            self._done[id_] = reply


class QueuedGrid(Grid):
    """Base class of the grids that run clients. For the parameters see ``LocalGrid``."""

    def __init__(
        self,
        client_app: ClientApp | str,
        num_nodes: int,
        *,
        cohort: int | Callable[[Message], int] = 1,
        by_rate: bool = True,
        node_config: Callable[[int], Mapping[str, UserConfigValue]] | None = None,
        run_config: Mapping[str, UserConfigValue] | None = None,
        cost: Callable[[Message], float] | None = None,
        seed: int = 0,
    ) -> None:
        check_count("num_nodes", num_nodes, 1)
        check_takes("node_config", node_config, "partition")
        if callable(cohort):
            self._cohort = cohort
        else:
            check_count("cohort", cohort, 1)
            self._cohort = lambda message: cohort
        self._by_rate, self._cost = by_rate, cost or (lambda message: 0.0)
        self._node_configs = {
            derive(seed, "node", partition): {
                "partition-id": partition,
                "num-partitions": num_nodes,
                **(node_config(partition) if node_config else {}),
            }
            for partition in range(num_nodes)
        }
        self._run_config = run_config or {}
        self._numbers = itertools.count(1)  # for ids of messages, groups and pushes
        self._contexts: dict[int, Context] = {}
        self._renew(Run.create_empty(derive(seed, "run")))
        self._open(client_app)

    @abstractmethod
    def _open(self, client_app: ClientApp | str) -> None:
        """Make the runner of the clients, and pass it to ``_run_clients``."""

    def _run_clients(self, runner: Runner, close: Callable[[], None]) -> None:
        """Set the grid's runner, and the function that ends it when the grid is closed or garbage-collected."""
        self._runner = runner
        self._finalizer = weakref.finalize(self, close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the runner, even if clients still run."""
        self._finalizer()

    @property
    def run(self) -> Run:
        """Copy of Flower's ``Run`` object."""
        return Run(**vars(self._run))

    def set_run(self, run: Run) -> None:
        """Begin another run, with an empty ``Context.state`` for every node. Cancel unanswered messages."""
        self._runner.cancel_all()
        self._renew(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a new message; Flower recommends ``Message(...)`` instead."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, in the order of their partitions."""
        return list(self._node_configs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        if not self._finalizer.alive:
            raise HeteroFLError(f"this {type(self).__name__} is closed; messages need an open one")
        messages = list(messages)
        ids = [self._set_id(message) for message in messages]
        push, share = next(self._numbers), -(-len(messages) // self._runner.gpu_workers)
        groups = (
            together(messages, lambda message: min(self._cohort(message), share), by_rate=self._by_rate)
            if self._runner.takes_groups
            else [[message] for message in messages]
        )
        self._runner.submit([Group(push, -sum(map(self._cost, some)), next(self._numbers), some) for some in groups])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are ready. A ``LocalGrid`` runs the clients first."""
        return self._runner.collect(list(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages, wait for the replies, and return them in the order of the messages.

        After ``timeout`` seconds, missing replies are left out.
        """
        return list(exchange(self, messages, timeout=timeout))

    def wait_for_replies(self, message_ids: Iterable[str], timeout: float | None = None) -> list[str]:
        """Wait at most ``timeout`` seconds for all replies; return the ids of answered messages."""
        return self._runner.wait(list(message_ids), math.inf if timeout is None else time.monotonic() + timeout)

    def cancel(self, message_ids: Iterable[str]) -> None:
        """Forget messages and their replies."""
        self._runner.cancel(list(message_ids))

    def _renew(self, run: Run) -> None:
        """Set the run of the grid and of new messages in this process, and give every node a new context."""
        self._run = run
        set_identity(run.run_id, SUPERLINK_NODE_ID)
        for node_id, config in self._node_configs.items():
            self._contexts[node_id] = Context(run.run_id, node_id, dict(config), RecordDict(), dict(self._run_config))

    def _set_id(self, message: Message) -> str:
        """Set a message's id and return it. Set run and sender too, which Flower before 1.38 does not do.

        Raise ``ConfigError`` for an unknown node.
        """
        node_id = message.metadata.dst_node_id
        if node_id not in self._node_configs:
            raise ConfigError(
                f"a message of type {message.metadata.message_type!r} goes to node {node_id}; expected one of this "
                f"grid's {len(self._node_configs)} nodes, as get_node_ids() lists them"
            )
        id_ = str(next(self._numbers))
        set_metadata(message, message_id=id_, run_id=self._run.run_id, src_node_id=SUPERLINK_NODE_ID)
        return id_
