"""What a node's own config says of it: its level or rate, and which part of the data it has."""

from flwr.app import Context, Message

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.transport import messages


def answer_capability(message: Message, context: Context) -> Message:
    """Return what this node can hold and which part of the data it has."""
    return messages.answer(message, read_capability(context))


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
