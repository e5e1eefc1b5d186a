"""What runs a grid's clients: the interface, and the one that runs them in this process, one by one."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType
from flwr.clientapp import ClientApp

from heterofl_flwr.grids.apps import Outcome, call, call_cohort
from heterofl_flwr.messages import CONFIG, RATE


@dataclass(order=True, slots=True)
class Group:
    """Messages to different nodes, answered together; mostly one alone.

    Groups sort by the push that they came with, so that nobody waits for what was pushed later, then by urgency, then
    in the order in which they were sent.
    """

    push: int
    urgency: float
    number: int
    messages: Sequence[Message] = field(compare=False)
    shared: Any = field(default=None, compare=False)
    deaths: int = field(default=0, compare=False)
    dropped: set[str] = field(default_factory=set, compare=False)

    @property
    def ids(self) -> list[str]:
        """The messages' ids."""
        return [message.metadata.message_id for message in self.messages]

    @property
    def nodes(self) -> list[int]:
        """The nodes that the messages go to."""
        return [message.metadata.dst_node_id for message in self.messages]

    @property
    def is_dropped(self) -> bool:
        """Whether nobody waits for any reply; else all are answered, so that those who wait get the same."""
        return len(self.dropped) == len(self.messages)


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
    in_turn = [some for _, some in sorted(alike.items(), key=lambda item: item[0][0])]
    return [chunk for some in in_turn for chunk in _chunks(some, min(map(most, some)) if len(some) > 1 else 1)]


def _rate(message: Message) -> float | None:
    """Return the rate at which a client is to train; None for any other message."""
    if message.metadata.message_type != MessageType.TRAIN or not message.has_content():
        return None
    config = message.content.get(CONFIG)
    rate = config.get(RATE) if isinstance(config, ConfigRecord) else None
    return rate if isinstance(rate, float) else None


def _chunks(messages: list[Message], most: int) -> Iterator[list[Message]]:
    number, size = -(-len(messages) // most), len(messages)
    for i in range(number):
        yield messages[i * size // number : (i + 1) * size // number]


logger = logging.getLogger(__name__)


class Runner(ABC):
    """Runs groups of messages, and keeps each node's context from one message to the next."""

    def __init__(self, contexts: dict[int, Context]) -> None:
        self._contexts = contexts
        self._done: dict[str, Message] = {}
        self.deaths: list[str] = []
        self.listener: Callable[[Message], None] = lambda reply: None

    @property
    @abstractmethod
    def takes_groups(self) -> bool:
        """Whether the ClientApp answers messages together."""

    @abstractmethod
    def submit(self, groups: Sequence[Group]) -> None:
        """Take the groups of one push."""

    @abstractmethod
    def wait(self, ids: Sequence[str], deadline: float | None) -> list[str]:
        """Wait for the replies to these messages until the deadline of ``time.monotonic``; return those answered."""

    def collect(self, ids: Sequence[str], deadline: float | None) -> dict[str, Message]:
        """Hand over the replies to these messages; wait for them until the deadline."""
        found = {id_: self._done.pop(id_, None) for id_ in self.wait(ids, deadline)}
        return {id_: reply for id_, reply in found.items() if reply is not None}

    @abstractmethod
    def poll(self, ids: Sequence[str]) -> dict[str, Message]:
        """Hand over those replies to these messages that can be had without waiting for another process."""

    @abstractmethod
    def cancel(self, ids: Sequence[str]) -> None:
        """Drop these messages and their replies; nobody will ask for them."""

    @abstractmethod
    def close(self) -> None:
        """End all that the runner started; may be called again."""

    def _settle(self, message: Message, outcome: Outcome) -> Message:
        """Keep the node's new context, report what failed, tell the listener, and return the reply."""
        node_id = message.metadata.dst_node_id
        if outcome.trouble:
            logger.error("node %d failed to answer %r:\n%s", node_id, message.metadata.message_type, outcome.trouble)
        if outcome.context is not None:
            self._contexts[node_id] = outcome.context
        self.listener(outcome.reply)
        return outcome.reply


class Inline(Runner):
    """Runs clients in this process, each when its reply is asked for, or that of one in its group."""

    def __init__(self, app: ClientApp, contexts: dict[int, Context]) -> None:
        super().__init__(contexts)
        self._app = app
        self._groups: dict[str, Group] = {}  # by the id of each message that waits
        self._lock = threading.Lock()  # Flower's legacy server asks from several threads

    @property
    def takes_groups(self) -> bool:
        """Whether the ClientApp answers messages together."""
        return hasattr(self._app, "train_cohort")

    def submit(self, groups: Sequence[Group]) -> None:
        """Take groups, without running them."""
        self._groups.update({id_: group for group in groups for id_ in group.ids})

    def poll(self, ids: Sequence[str]) -> dict[str, Message]:
        """Run all of these clients."""
        return self.collect(ids, None)

    def wait(self, ids: Sequence[str], deadline: float | None) -> list[str]:
        """Run these clients until the deadline, in the order sent; those at work then are let finish."""
        with self._lock:
            asked = {group.number: group for id_ in ids if (group := self._groups.get(id_))}
            for _, group in sorted(asked.items()):
                if deadline is not None and time.monotonic() >= deadline:
                    break
                self._run(group)
        return [id_ for id_ in ids if id_ in self._done]

    def cancel(self, ids: Sequence[str]) -> None:
        """Forget these messages."""
        for id_ in ids:
            self._groups.pop(id_, None)
            self._done.pop(id_, None)

    def close(self) -> None:
        """Forget all messages."""
        self._groups.clear()
        self._done.clear()

    def _run(self, group: Group) -> None:
        awaited = [self._groups.pop(id_, None) is not None for id_ in group.ids]
        contexts = [self._contexts[node_id] for node_id in group.nodes]
        outcomes = call_cohort(self._app, group.messages, contexts) or [
            call(self._app, message, context) for message, context in zip(group.messages, contexts, strict=True)
        ]
        for is_awaited, message, outcome in zip(awaited, group.messages, outcomes, strict=True):
            if is_awaited:
                self._done[message.metadata.message_id] = self._settle(message, outcome)
