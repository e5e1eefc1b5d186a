"""Level, rate and partition in a node's config (``--node-config``)."""

from flwr.app import Context, UserConfig

from heterofl_flwr.client.instruction import Instruction
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.transport import messages

_KEYS = (messages.NODE_LEVEL, messages.NODE_RATE, messages.NODE_PARTITION, messages.NODE_NUM_PARTITIONS)


def read_capability(context: Context) -> dict[str, object]:
    """Return the rate, partition and number of partitions in a node's config, as entries for a message.

    A level is converted to its rate. A value that the config lacks has no entry.
    """
    node = context.node_config
    for key in node:
        plain = key.lower().replace("_", "-")
        expected = messages.NODE_LEVEL if plain == messages.CAPACITY else plain
        if expected in _KEYS and key != expected:
            raise ConfigError(f"the node config has {key}={node[key]!r}, a key that nothing reads: write {expected}=")
    if messages.NODE_LEVEL in node and messages.NODE_RATE in node:
        raise ConfigError("the node config has both level and rate: keep one")
    fields: dict[str, object] = {}
    rate_key = messages.NODE_LEVEL if messages.NODE_LEVEL in node else messages.NODE_RATE
    if rate_key in node:
        # The server may not know which node this is.
        named = f" ({key}={node[key]})" if (key := messages.NODE_PARTITION) in node else ""
        fields[messages.CAPACITY] = read_rate(node[rate_key], f"{rate_key} in the node config{named}")
    return {**fields, **_read_partition(node)}


def read_rate(level: str | float, source: str) -> float:
    """Return the rate of a level; an error names its source."""
    try:
        return rate_of(level)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _read_partition(node: UserConfig) -> dict[str, int]:
    """Return the partition and number of partitions, if the node's config has them, as entries for a message."""
    fields: dict[str, int] = {}
    for field, key, least in (
        (messages.PARTITION, messages.NODE_PARTITION, 0),
        (messages.NUM_PARTITIONS, messages.NODE_NUM_PARTITIONS, 1),
    ):
        if key in node:
            value = node[key]
            if isinstance(value, str) and value.isdecimal():
                value = int(value)  # Flower's start_simulation writes numbers as text
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"the node config has {key}={value!r}; expected a whole number of {least} or more")
            fields[field] = value
    if len(fields) == 2 and fields[messages.PARTITION] >= (number := fields[messages.NUM_PARTITIONS]):
        raise ConfigError(
            f"the node config has {messages.NODE_PARTITION}={fields[messages.PARTITION]} and "
            f"{messages.NODE_NUM_PARTITIONS}={number}; expected a {messages.NODE_PARTITION} from 0 to {number - 1}"
        )
    return fields


def new_capacity(capacity: str | float | None, context: Context, instruction: Instruction) -> dict[str, object]:
    """Return the entry in which a reply reports the client's capacity (largest rate); {} if there is none to report.

    If ``capacity`` is None, replies to training instructions report the rate in the node config, if this rate is below
    the instruction's rate. That is the case if the node has been restarted with a smaller rate.
    """
    if capacity is not None:
        return {messages.CAPACITY: read_rate(capacity, "capacity")}
    if not instruction.is_training:
        return {}
    try:
        reported = read_capability(context).get(messages.CAPACITY)
    except ConfigError:  # the answer to the capability query has this error, and the node trains nevertheless
        return {}
    return {messages.CAPACITY: reported} if isinstance(reported, float) and reported < instruction.rate else {}


def partition_of(context: Context) -> tuple[int, int]:
    """Return a node's partition, from 0, and the number of partitions."""
    fields = read_capability(context)
    partition, parts = fields.get(messages.PARTITION), fields.get(messages.NUM_PARTITIONS)
    if not isinstance(partition, int) or not isinstance(parts, int):
        missing = messages.NODE_NUM_PARTITIONS if isinstance(partition, int) else messages.NODE_PARTITION
        raise ConfigError(
            f"the node config has no {missing}; it has {', '.join(context.node_config) or 'nothing'}: start the node "
            f"with --node-config '{messages.NODE_PARTITION}=0 {messages.NODE_NUM_PARTITIONS}=10'"
        )
    return partition, parts
