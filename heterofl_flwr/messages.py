"""Every record and key that travels between server and clients, in one place.

Instructions carry an ``ArrayRecord`` of parameters and a ``ConfigRecord``; replies carry parameters, a ``MetricRecord``
and a ``ConfigRecord``. Every config carries the schema version, so that two versions of this package that would
misunderstand one another say so instead.
"""

from collections.abc import Mapping
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message
from torch import Tensor

from heterofl_flwr.errors import ReplyError
from heterofl_flwr.nn.moments import Moments

SCHEMA = 1
"""Raise when a message changes its meaning."""

# Names of records.
ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
MOMENTS = "moments"

# Keys of configs.
SCHEMA_KEY = "heterofl-schema"
RATE = "rate"
GLOBAL_RATE = "global-rate"
SERVER_ROUND = "server-round"
SEED = "seed"
PARTITION = "partition"
NUM_PARTITIONS = "num-partitions"
LEARNING_RATE = "lr"
LABELS = "labels"
CAPACITY = "capacity"
CLASSES = "classes"
RATES = "rates"
MOMENTS_KIND = "moments-kind"

# Keys of metrics.
NUM_EXAMPLES = "num-examples"

# What the classic API asks of a client, which knows fit and evaluate alone.
TASK = "task"
TASK_TRAIN = "train"
TASK_EVALUATE = "evaluate"
TASK_MOMENTS = "moments"

# Queries, as Flower's message types name them.
QUERY_CAPABILITY = "query.capability"
QUERY_MOMENTS = "query.moments"

# Keys of a node's own config (``--node-config``).
NODE_LEVEL = "level"
NODE_RATE = "rate"
NODE_PARTITION = "partition-id"
NODE_NUM_PARTITIONS = "num-partitions"

Value = TypeVar("Value")


def new_config(values: Mapping[str, object]) -> ConfigRecord:
    """Return a fresh config with the schema version."""
    return ConfigRecord({SCHEMA_KEY: SCHEMA, **values})  # type: ignore[dict-item]


def config_of(message: Message, sender: str) -> ConfigRecord:
    """Return a message's config; refuse one of another schema, naming both sides."""
    config = message.content.config_records.get(CONFIG)
    found = None if config is None else config.get(SCHEMA_KEY)
    if config is None or found != SCHEMA:
        raise other_schema(sender, found)
    return config


def other_schema(sender: str, found: object) -> ReplyError:
    """Return the error for messages of another version of this package, or of none."""
    return ReplyError(
        f"{sender} sent messages of schema {found!r}, expected {SCHEMA}: "
        f"install the same version of heterofl-flwr on the server and on every node"
    )


def value_of(config: ConfigRecord, key: str, kind: type[Value], sender: str) -> Value:
    """Return one value of a config; refuse a missing one or one of another type."""
    value: object = config.get(key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ReplyError(f"{sender} sent {value!r} as {key}, expected {kind.__name__}")
    return value


def tensors_of(record: ArrayRecord, sender: str) -> dict[str, Tensor]:
    """Return the tensors of a record; refuse one that cannot be read."""
    try:
        return dict(record.to_torch_state_dict())
    except Exception as error:  # bytes that are no array make numpy and torch raise almost anything
        raise ReplyError(f"{sender} sent arrays that cannot be read: {type(error).__name__}: {error}") from error


def pack_moments(moments: Mapping[float, Moments]) -> ArrayRecord:
    """Return static batch norm moments by rate as one record."""
    return ArrayRecord(moment_tensors(moments))


def moment_tensors(moments: Mapping[float, Moments]) -> dict[str, Tensor]:
    """Return static batch norm moments by rate as tensors, with the rate and a slash before each name."""
    return {f"{rate}/{name}": tensor for rate, own in moments.items() for name, tensor in own.to_tensors().items()}


def unpack_moments(record: ArrayRecord, rate: float, sender: str) -> Moments:
    """Return the moments of one rate that a record holds; refuse a record that lacks them."""
    prefix = f"{rate}/"
    tensors = tensors_of(record, sender)
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not own:
        raise ReplyError(f"{sender} sent no moments of rate {rate}")
    try:
        return Moments.from_tensors(own)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ReplyError(f"{sender} sent moments of rate {rate} that cannot be used: {error}") from error
