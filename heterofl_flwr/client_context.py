"""A client's context: what its node config says of the node, and what the client keeps in it from task to task."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from heterofl_flwr import messages, packing
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.errors import ConfigError

_KEPT = "heterofl-own"
"""The record of a client's context with the parameters that stay with it, and with what stages keep."""

STAGES = "stages/"
"""What the names of the latter begin with."""

_NOTES = "heterofl-round"
"""The record of a node's context with what stages keep during a round, which never leaves the node's memory."""

CONTEXT: ContextVar[Context | None] = ContextVar("context", default=None)
"""The context of the node whose message is being answered."""


def answer_capability(message: Message, context: Context) -> Message:
    """Return what this node can hold and which part of the data it has."""
    return Message(RecordDict({messages.CONFIG: messages.new_config(read_capability(context))}), reply_to=message)


def read_capability(context: Context) -> dict[str, object]:
    """Return what a node's own config says: level or rate, and which part of the data it has."""
    node = context.node_config
    if messages.NODE_LEVEL in node and messages.NODE_RATE in node:
        raise ConfigError("the node config has both level and rate: keep one")
    reported: dict[str, object] = {}
    capacity = node.get(messages.NODE_LEVEL, node.get(messages.NODE_RATE))
    if capacity is not None:
        reported[messages.CAPACITY] = rate_of(capacity)
    for key, own in (
        (messages.PARTITION, messages.NODE_PARTITION),
        (messages.NUM_PARTITIONS, messages.NODE_NUM_PARTITIONS),
    ):
        if own in node:
            value = node[own]
            if isinstance(value, str) and value.isdecimal():
                value = int(value)  # Flower's start_simulation writes numbers as text
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"the node config has {own}={value!r}; expected a whole number")
            reported[key] = value
    return reported


def kept_part(context: Context | None) -> dict[str, Tensor] | None:
    """Return what ``reply`` kept in a client's context; None if there is none, or nothing in it."""
    record = None if context is None else context.state.get(_KEPT)
    return packing.read_tensors(record, "this client's context") if isinstance(record, ArrayRecord) else None


def keep_part(context: Context, state: Mapping[str, Tensor]) -> None:
    """Keep a client's own parameters in its context, which Flower keeps as long as the node lives."""
    context.state[_KEPT] = ArrayRecord(dict(state))


def kept_by_stages(context: Context | None) -> dict[str, Tensor]:
    """Return what stages keep from task to task, by their own names."""
    kept = kept_part(context) or {}
    return {name.removeprefix(STAGES): own for name, own in kept.items() if name.startswith(STAGES)}


@contextmanager
def answering(context: Context) -> Iterator[None]:
    """Let ``reply`` know whose context it is, without being given it."""
    token = CONTEXT.set(context)
    try:
        yield
    finally:
        CONTEXT.reset(token)


def read_notes(context: Context | None) -> dict[str, bytes] | None:
    """Return what stages keep during a round; None without a context."""
    if context is None:
        return None
    record = context.state.get(_NOTES)
    return cast("dict[str, bytes]", dict(record)) if isinstance(record, ConfigRecord) else {}


def keep_notes(context: Context | None, notes: Mapping[str, bytes] | None) -> None:
    """Keep what stages keep during a round."""
    if context is not None:
        context.state[_NOTES] = ConfigRecord(dict(notes or {}))
