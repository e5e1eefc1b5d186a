"""Runners: what runs a grid's clients, in groups of messages. The one here runs them in this process, one by one."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Context, Message, MessageType
from flwr.clientapp import ClientApp

from heterofl_flwr.grids.apps import Envelope, answer
from heterofl_flwr.grids.payloads import Slice
from heterofl_flwr.messages import CONFIG, RATE

logger = logging.getLogger(__name__)


@dataclass(order=True, slots=True)
class Group:
    """Messages to different nodes, answered together; mostly one alone.

    Groups sort by push, so that nobody waits for what was pushed later, then by urgency, then in the order sent.
    """

    push: int
    urgency: float
    number: int
    messages: Sequence[Message] = field(compare=False)
    slices: Sequence[Slice | None] = field(default=(), compare=False)
    deaths: int = field(default=0, compare=False)

    @property
    def ids(self) -> list[str]:
        """The messages' ids."""
        return [message.metadata.message_id for message in self.messages]

    @property
    def nodes(self) -> list[int]:
        """The nodes that the messages go to."""
        return [message.metadata.dst_node_id for message in self.messages]


def together(messages: Sequence[Message], most: Callable[[Message], int]) -> list[list[Message]]:
    """Return the messages in groups: equal rate, different nodes, in the order sent, and as many as all of them allow.

    The messages of a rate are shared out evenly: six make three and three, not five and one. A node's messages stay in
    their order: groups of first messages come before those of second ones. What names no rate stays alone.
    """
    turns: Counter[int] = Counter()
    alike: dict[tuple[int, float | None, int], list[Message]] = {}
    for position, message in enumerate(messages):
        node_id, rate = message.metadata.dst_node_id, _rate(message)
        alike.setdefault((turns[node_id], rate, position if rate is None else 0), []).append(message)
        turns[node_id] += 1
    groups = []
    for _, some in sorted(alike.items(), key=lambda item: item[0][0]):  # by turn
        size = len(some)
        number = -(-size // min(map(most, some))) if size > 1 else 1
        groups += [some[i * size // number : (i + 1) * size // number] for i in range(number)]
    return groups


def _rate(message: Message) -> float | None:
    """Return the rate at which a client is to train; None for any other message."""
    is_training = message.metadata.message_type == MessageType.TRAIN and message.has_content()
    config = message.content.get(CONFIG) if is_training else None
    rate = config.get(RATE) if isinstance(config, ConfigRecord) else None
    return rate if isinstance(rate, float) else None


class Runner(ABC):
    """Runs groups of messages, and keeps each node's context from one message to the next."""

    poll_until: float | None = 0.0
    """Until when of ``time.monotonic`` ``collect`` may run where replies are pulled; None: as long as it takes."""

    def __init__(self, contexts: dict[int, Context], takes_groups: bool) -> None:
        self.takes_groups = takes_groups
        self.deaths: list[str] = []
        self.listener: Callable[[Message], None] = lambda reply: None
        self._contexts = contexts
        self._groups: dict[str, Group] = {}  # by the id of each message that somebody waits for
        self._done: dict[str, Message] = {}

    @abstractmethod
    def submit(self, groups: Sequence[Group]) -> None:
        """Accept the groups of one push."""

    @abstractmethod
    def wait(self, ids: Sequence[str], deadline: float | None) -> list[str]:
        """Wait for the replies to these messages until the deadline of ``time.monotonic``; return those answered."""

    def collect(self, ids: Sequence[str], deadline: float | None) -> list[Message]:
        """Return the replies to these messages, in their order, and keep none; wait for them until the deadline."""
        return [reply for id_ in self.wait(ids, deadline) if (reply := self._done.pop(id_, None))]

    def cancel(self, ids: Sequence[str]) -> None:
        """Drop these messages and their replies; nobody will ask for them."""
        for id_ in ids:
            self._groups.pop(id_, None)
            self._done.pop(id_, None)

    def close(self) -> None:
        """End all that the runner started; may be called again."""
        self._groups.clear()
        self._done.clear()

    def _keep(self, group: Group, answers: Sequence[Envelope]) -> None:
        """Keep the nodes' new contexts, and the replies that somebody waits for."""
        for message, (reply, context, trouble) in zip(group.messages, answers, strict=True):
            node_id, id_ = message.metadata.dst_node_id, message.metadata.message_id
            if self._groups.pop(id_, None) is None:
                continue
            if trouble:
                logger.error("node %d failed to answer %r:\n%s", node_id, message.metadata.message_type, trouble)
            if context is not None:
                self._contexts[node_id] = context
            self._done[id_] = reply
            try:
                self.listener(reply)
            except Exception:  # a worker's thread has to go on
                logger.exception("the listener to replies raised an error")


class Inline(Runner):
    """Runs clients in this process, each when its reply is asked for, or that of one in its group."""

    poll_until = None

    def __init__(self, app: ClientApp, contexts: dict[int, Context]) -> None:
        super().__init__(contexts, hasattr(app, "train_cohort"))
        self._app = app
        self._lock = threading.Lock()  # Flower's classic server asks from several threads

    def submit(self, groups: Sequence[Group]) -> None:
        """Accept groups, without running them."""
        self._groups.update({id_: group for group in groups for id_ in group.ids})

    def wait(self, ids: Sequence[str], deadline: float | None) -> list[str]:
        """Run these clients until the deadline, in the order sent; one that has begun is not interrupted."""
        with self._lock:
            asked = {group.number: group for id_ in ids if (group := self._groups.get(id_))}
            for _, group in sorted(asked.items()):
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self._keep(group, answer(self._app, group.messages, [self._contexts[own] for own in group.nodes]))
        return [id_ for id_ in ids if id_ in self._done]
