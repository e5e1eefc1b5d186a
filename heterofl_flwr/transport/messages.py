"""Names of all records and keys of messages, and functions that make messages.

Every config has the version of the schema, so that incompatible versions of this package raise an error.
"""

import time
from collections.abc import Mapping, Sequence
from operator import index
from reprlib import repr as shown

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict

from heterofl_flwr.common.errors import ConfigError, FaultKind
from heterofl_flwr.federation.callbacks import RoundCallback
from heterofl_flwr.federation.federation import Federation
from heterofl_flwr.stages import client_stage, compress, secure_sum_client
from heterofl_flwr.transport import compat
from heterofl_flwr.transport.compat import ErrorCode

SCHEMA = 2
"""Version of the messages; increase it when the meaning of a message changes."""

# Names of records.
ARRAYS = "arrays"
CHANGES = "changes"
SCALES = "scales"
MASKED = secure_sum_client.FORM
BROADCAST = "stage-tensors"
CONFIG = "config"
METRICS = "metrics"
MOMENTS = "moments"
LEVELS = "level-parameters"
POSTERIORS = "posteriors"

UPLOAD_RECORDS: Mapping[str, tuple[str, ...]] = {
    client_stage.FULL_PRECISION: (ARRAYS,),
    "float16": (CHANGES,),
    "int8": (CHANGES, SCALES),
    MASKED: (MASKED,),
}
"""Names of the records with parameters, by the form of a reply (``upload``)."""

# Keys of configs.
SCHEMA_KEY = "heterofl-schema"
RATE = "rate"
GLOBAL_RATE = "global-rate"
SERVER_ROUND = "server-round"
SEED = "seed"
PARTITION = "partition"
NUM_PARTITIONS = "num-partitions"
LEARNING_RATE = "lr"
PROXIMAL_MU = "proximal-mu"
LABELS = "labels"
HEAD_LABELS = "labels/"  # prefix; the name of a head follows
CAPACITY = "capacity"
CLASSES = "classes"
RATES = "rates"
SLICE_RULE = "slice-rule"
WINDOW = "window"
MOMENTS_KIND = "moments-kind"
UPLOAD, CLIENT_STAGES = compress.KEY, client_stage.KEY
SHARED = "shared"
TRAINED = "has-trained"
BASE = "frozen-base"
SEED_ROWS = "seed-rows"
TEMPERATURE = "temperature"
WORK = "work"
DROPS_OUT = "drops-out"
ASSIGNED_RATE = "assigned-rate"
RUN_KEY = "run-key"
COUNTED_ROUND = "counted-round"
OLDEST_CHECKPOINT = "oldest-checkpoint"

RESERVED = frozenset(
    {RATE, GLOBAL_RATE, SEED, PARTITION, RATES, SLICE_RULE, WINDOW, MOMENTS_KIND, UPLOAD, CLIENT_STAGES, SHARED, WORK}
    | {TRAINED, RUN_KEY, OLDEST_CHECKPOINT, BASE, DROPS_OUT, ASSIGNED_RATE, SCHEMA_KEY, COUNTED_ROUND}
    | {secure_sum_client.KEY, secure_sum_client.CLIENTS, secure_sum_client.KEYS}
)
"""Keys of instructions that the server sets; a user's ``train_config`` or ``evaluate_config`` must not have them."""

# Keys of metrics.
NUM_EXAMPLES = "num-examples"

# Key of the kind of message in the classic API, and its values. Clients there have only the methods fit and evaluate.
TASK = "task"
TASK_TRAIN = "train"
TASK_EVALUATE = "evaluate"
TASK_MOMENTS = "moments"

# Flower's message types of queries.
QUERY_CAPABILITY = "query.capability"
QUERY_MOMENTS = "query.moments"
QUERY_STAGES = "query.stages"

# Keys of a node's own config (``--node-config``).
NODE_LEVEL = "level"
NODE_RATE = "rate"
NODE_PARTITION = "partition-id"
NODE_NUM_PARTITIONS = "num-partitions"

# Flower's message types of FedH2L's two exchanges of training.
TRAIN_PUBLISH = "train.publish"
TRAIN_LEARN = "train.learn"

SERVER = "the server"
"""Name of the sender of instructions, in errors of clients."""

NOT_HETEROFL = (
    "the server's strategy is not HeteroFL: use heterofl_flwr.HeteroFL (for a NumPyClient, "
    "heterofl_flwr.classic.HeteroFL) in the ServerApp; under another strategy, such as FedAvg, a client builds and "
    "loads its model itself, without a Task"
)
NOT_CONVERTED = (
    "its ClientApp is not converted: let it call answer_queries(app, build) once, and for each message make "
    "task = Task(message, context, build), train task.model() and return task.reply(...) (heterofl_flwr.client); a "
    "NumPyClient needs heterofl_flwr.classic: its HeteroFL, its Task, and in get_properties its properties_of; if it "
    "is converted, the SuperLink of an earlier flwr run was started in another folder, and clients import from there "
    "first: end it"
)

SIMULATED = "simulated: "
"""Prefix of the reason of every ``LocalFault`` of the kinds ``simulated`` and ``unsent``."""


class LocalFault(Error):
    """Error that this process makes instead of a client's reply.

    A client cannot imitate such an error, because errors from other processes are not of this class.
    """

    def __init__(self, reason: str, kind: FaultKind = "failed") -> None:
        super().__init__(ErrorCode.NODE_UNAVAILABLE, reason)
        self.kind = kind


Record = ArrayRecord | MetricRecord


def new_config(values: Mapping[str, object]) -> ConfigRecord:
    """Return a config record with the version of the schema."""
    return ConfigRecord({SCHEMA_KEY: SCHEMA, **values})  # type: ignore[dict-item]


def instruction(kind: str, node_id: int, arrays: ArrayRecord, config: Mapping[str, object]) -> Message:
    """Return a message of the type ``kind`` to a node, with arrays and a config."""
    return Message(RecordDict({ARRAYS: arrays, CONFIG: new_config(config)}), node_id, kind)


def client_config(
    federation: Federation, server_round: int, node_id: int, rate: float, callbacks: Sequence[RoundCallback]
) -> dict[str, object]:
    """Return the config entries that training messages and evaluation messages have in common."""
    training, architecture = federation.options.training, federation.architecture
    config: dict[str, object] = {
        RATE: rate,
        GLOBAL_RATE: federation.mix.global_rate,
        SERVER_ROUND: server_round,
        SEED: federation.seed,
        PARTITION: federation.nodes.partition(node_id),
    }
    if base := architecture.frozen_fingerprint(rate):
        config[BASE] = base
    if architecture.personal:
        config[SHARED] = list(architecture.shared) or [""]  # a config has no empty list
    if architecture.clients_keep:
        config[TRAINED] = node_id in federation.nodes.trained
        config[RUN_KEY] = federation.run_key
        saved = [callback.oldest_checkpoint for callback in callbacks if callback.oldest_checkpoint is not None]
        config[OLDEST_CHECKPOINT] = min(saved, default=server_round - 2)
        if not architecture.personal:
            config[COUNTED_ROUND] = federation.nodes.counted.get(federation.nodes.partition(node_id), server_round)
    if training.proximal_mu:
        config[PROXIMAL_MU] = float(training.proximal_mu)
    return config


def answer(message: Message, config: Mapping[str, object], records: Mapping[str, Record] = {}) -> Message:
    """Return a reply to a message, with a config and other records."""
    return Message(RecordDict({CONFIG: new_config(config), **records}), reply_to=message)


def new_metrics(values: Mapping[str, float | Sequence[float]], num_examples: int) -> MetricRecord:
    """Return a record of metrics and the number of examples.

    Raise ``ConfigError`` for metrics other than numbers or lists of numbers, and for another number of examples among
    them.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"metrics is {shown(values)}; expected a dictionary, such as {{'loss': 0.5}}")
    metrics = MetricRecord()
    for key, value in values.items():
        try:
            if isinstance(value, str | bytes):  # these are Sequences: "12" would become [1.0, 2.0]
                raise TypeError
            number = [float(entry) for entry in value] if isinstance(value, Sequence) else float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ConfigError(f"metrics[{key!r}] is {shown(value)}; expected a number, or a list of numbers") from None
        metrics[key] = number
    number = count_examples(num_examples)
    if (reported := metrics.get(NUM_EXAMPLES, number)) != number:
        raise ConfigError(
            f"metrics[{NUM_EXAMPLES!r}] is {reported}, and num_examples is {number}: name the metric otherwise, or "
            f"leave it out"
        )
    metrics[NUM_EXAMPLES] = number
    return metrics


def count_examples(num_examples: int) -> int:
    """Return ``num_examples``, an integer of Python or NumPy, as an int; raise ``ConfigError`` for other types."""
    try:
        return index(num_examples)
    except TypeError:
        raise ConfigError(
            f"num_examples is {shown(num_examples)}; expected a whole number, such as len(dataset)"
        ) from None


def check_own_keys(config: Mapping[str, object], reserved: frozenset[str] = RESERVED) -> None:
    """Raise ``ConfigError`` if a user's config contains reserved keys."""
    if taken := sorted(reserved.intersection(config)):
        raise ConfigError(
            f"the config for clients has {', '.join(taken)}, but the strategy itself sends values by that name; choose "
            f"another name, such as my-{taken[0]}, or leave it out"
        )


def error_reply(reply_to: str, run_id: int, signer: int, error: Error) -> Message:
    """Return an error reply to the message with the id ``reply_to``, from the node ``signer``."""
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=signer,
        dst_node_id=signer,
        reply_to_message_id=reply_to,
        group_id="",
        created_at=time.time(),
        ttl=0,
        message_type=compat.SYSTEM_MESSAGE_TYPE,
    )
    return compat.make_message(metadata, error=error)
