"""Which messages are answered together: a function of the messages that are pushed together, and of nothing else."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType

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
