"""Every record and key that travels between server and clients, in one place.

Instructions carry an ``ArrayRecord`` of parameters and a ``ConfigRecord``; replies carry parameters, a ``MetricRecord``
and a ``ConfigRecord``. Every config carries the schema version, so that two versions of this package that would
misunderstand one another say so instead. A sender is by default the server, as clients read its messages.
"""

import io
import math
import warnings
from collections.abc import Mapping
from reprlib import repr as shown
from typing import TypeVar, cast, get_args

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from torch import Tensor

from heterofl_flwr.compat import ErrorCode
from heterofl_flwr.core.compression import Changes, Upload
from heterofl_flwr.core.exchange import exchanged_dtype
from heterofl_flwr.core.plan import ALL, Plan
from heterofl_flwr.core.reply_checks import check_names
from heterofl_flwr.core.slice_rules import SliceRule
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.nn.moments import Moments

SCHEMA = 1
"""Raise when a message changes its meaning."""

# Names of records.
ARRAYS = "arrays"
CHANGES = "changes"
SCALES = "scales"
CONFIG = "config"
METRICS = "metrics"
MOMENTS = "moments"
POSTERIORS = "posteriors"
RECORDS = frozenset({ARRAYS, CHANGES, SCALES, CONFIG, METRICS, MOMENTS, POSTERIORS})

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
SLICE_RULE = "slice-rule"
WINDOWS = "windows"
MOMENTS_KIND = "moments-kind"
UPLOAD = "upload"
CLIP = "clip"
SHARED = "shared"
FAMILY = "family"
SEED_ROWS = "seed-rows"
TEMPERATURE = "temperature"
WORK = "work"
RUN_KEY = "run-key"

RESERVED = frozenset(
    {RATE, GLOBAL_RATE, SEED, PARTITION, RATES, SLICE_RULE, WINDOWS, MOMENTS_KIND, UPLOAD, CLIP, SHARED, FAMILY, WORK}
)
"""Keys by which the server tells clients what to do, so that a user's own config cannot have them."""

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
NODE_SECONDS = "round-seconds"
NODE_CAPACITY = "capacity-path"

# Instructions to train of FedH2L and of the hybrid.
TRAIN_PUBLISH = "train.publish"
TRAIN_LEARN = "train.learn"

UPLOAD_RECORDS: Mapping[Upload, tuple[str, ...]] = {
    "float32": (ARRAYS,),
    "float16": (CHANGES,),
    "int8": (CHANGES, SCALES),
}
"""The records that carry parameters in each form of a reply."""

SERVER = "the server"
"""How clients call the sender of their instructions."""

NOT_HETEROFL = (
    "the server's strategy is not HeteroFL: use heterofl_flwr.HeteroFL (for a NumPyClient, "
    "heterofl_flwr.classic.HeteroFL) in the ServerApp; under another strategy, such as FedAvg, a client builds and "
    "loads its model itself, without submodel and reply"
)
NOT_CONVERTED = (
    "its ClientApp is not converted: let it call answer_queries once, submodel in place of building and loading the "
    "model, and reply to answer (heterofl_flwr.client); in a NumPyClient properties_of, submodel and parameters_of "
    "(heterofl_flwr.classic)"
)

HEADER_BYTES = 1024
"""More than the header of any array that a client of ours sends."""

SIMULATED = "simulated: "
"""How the reason of every ``SimulatedFault`` begins."""


class SimulatedFault(Error):
    """Why a simulated device gives no reply. No client can claim it: a type of error does not travel."""

    def __init__(self, reason: str) -> None:
        super().__init__(ErrorCode.NODE_UNAVAILABLE, reason)


Value = TypeVar("Value")


def new_config(values: Mapping[str, object]) -> ConfigRecord:
    """Return a fresh config with the schema version."""
    return ConfigRecord({SCHEMA_KEY: SCHEMA, **values})  # type: ignore[dict-item]


def check_own_keys(config: Mapping[str, object], reserved: frozenset[str] = RESERVED) -> None:
    """Raise ``ConfigError`` if what a user sends along has keys that mean something else here."""
    if taken := sorted(reserved.intersection(config)):
        raise ConfigError(
            f"the config that goes with instructions has {', '.join(taken)}: by that name clients get what HeteroFL "
            f"itself asks of them; choose another name, as my-{taken[0]}"
        )


def read_config(message: Message, sender: str = SERVER) -> ConfigRecord:
    """Return a message's config, or the only one that it has; reject one of another schema, naming both sides."""
    config = find_record(message.content, CONFIG, ConfigRecord) or ConfigRecord()
    check_schema(config, sender)
    return config


def find_record(content: RecordDict, name: str, kind: type[Value]) -> Value | None:
    """Return the only record of a kind, or of several the one with this name."""
    found = {own: record for own, record in content.items() if isinstance(record, kind)}
    return next(iter(found.values())) if len(found) == 1 else found.get(name)


def check_schema(config: Mapping[str, object], sender: str = SERVER) -> None:
    """Reject what another version of this package sent, or what was not sent by it at all."""
    if SCHEMA_KEY not in config:
        cause = NOT_HETEROFL if sender == SERVER else NOT_CONVERTED
        raise ReplyError(f"{sender} sent a message without the config of HeteroFL: {cause}")
    if config[SCHEMA_KEY] != SCHEMA:
        raise ReplyError(
            f"{sender} sent messages of schema {shown(config[SCHEMA_KEY])}, expected {SCHEMA}: "
            f"install the same version of heterofl-flwr on the server and on every node"
        )


def read_value(config: Mapping[str, object], key: str, kind: type[Value], sender: str = SERVER) -> Value:
    """Return one value of a config; reject a missing one or one of another type."""
    value: object = config.get(key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else value  # beyond what a message can carry
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise unexpected(value, key, kind.__name__, sender)
    return value


def read_optional(config: Mapping[str, object], key: str, kind: type[Value], sender: str = SERVER) -> Value | None:
    """Return one value of a config, or None where there is none."""
    return read_value(config, key, kind, sender) if key in config else None


def unexpected(value: object, key: str, expected: str, sender: str = SERVER) -> ReplyError:
    """Return the error of a value that is not what was expected under its key."""
    return ReplyError(f"{sender} sent {shown(value)} as {key}, expected {expected}")


def read_rates(config: Mapping[str, object], default: list[float]) -> list[float]:
    """Return the rates that an instruction names."""
    value = config.get(RATES, default)
    if not isinstance(value, list) or not value or not all(isinstance(rate, float) for rate in value):
        raise unexpected(value, RATES, "a list of numbers")
    return list(value)


def read_upload(config: Mapping[str, object], sender: str = SERVER) -> Upload:
    """Return the form of a reply that an instruction asks for, or that a reply has; by default float32."""
    value = config.get(UPLOAD, "float32")
    if value not in get_args(Upload):
        raise unexpected(value, UPLOAD, f"one of {', '.join(get_args(Upload))}", sender)
    return cast("Upload", value)


def read_shared(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the patterns of the parameters that an instruction brings and wants back; by default all."""
    value = config.get(SHARED, list(ALL))
    if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
        raise unexpected(value, SHARED, "a list of patterns")
    return tuple(pattern for pattern in value if pattern)


def read_work(config: Mapping[str, object]) -> float:
    """Return the share of its steps that an instruction asks of a client; by default all."""
    value = config.get(WORK, 1.0)
    if not isinstance(value, float) or not 0 < value <= 1:
        raise unexpected(value, WORK, "a number over 0 and up to 1")
    return value


def read_clip(config: Mapping[str, object]) -> float:
    """Return the L2 norm to which an instruction asks a client to shorten its change; by default 0 for none."""
    value = config.get(CLIP, 0.0)
    if not isinstance(value, float) or not 0 <= value < math.inf:
        raise unexpected(value, CLIP, "a number of 0 or more")
    return value


def read_windows(config: Mapping[str, object]) -> tuple[SliceRule, list[int]]:
    """Return the slices of each smaller rate that an instruction asks to evaluate; by default the prefix alone."""
    rule, windows = config.get(SLICE_RULE, "prefix"), config.get(WINDOWS, [0])
    if rule not in get_args(SliceRule):
        raise unexpected(rule, SLICE_RULE, f"one of {', '.join(get_args(SliceRule))}")
    if not isinstance(windows, list) or not windows or not all(isinstance(own, int) and own >= 0 for own in windows):
        raise unexpected(windows, WINDOWS, "a list of rounds")
    return cast("SliceRule", rule), windows


def array_records(content: RecordDict) -> dict[str, ArrayRecord]:
    """Return the array records among what a message carries; a single one of an unknown name is that of parameters.

    Flower's ``content.array_records`` makes an object that refers to itself, so each use would keep the whole message
    alive until the garbage collector runs.
    """
    found = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
    unknown = [name for name in found if name not in RECORDS]
    if len(unknown) == 1 and ARRAYS not in found and CHANGES not in found:
        found[ARRAYS] = found.pop(unknown[0])
    return found


def move_to_record(state: dict[str, Tensor]) -> ArrayRecord:
    """Return tensors as a record; each is removed from ``state`` when its bytes are made, to hold none twice."""
    record = ArrayRecord()
    for name in list(state):
        record[name] = Array(state.pop(name))
    return record


def check_sizes(record: ArrayRecord, entries: Mapping[str, int], sender: str) -> None:
    """Reject a record with an array larger than its entries in double precision, before anything of it is read."""
    for name, array in record.items():
        most = 8 * entries.get(name, 0) + HEADER_BYTES
        if len(array.data) > most:
            raise ReplyError(f"{sender} sent {len(array.data):,} bytes as {name[:80]!r}, expected up to {most:,}")


def count_bytes(arrays: ArrayRecord) -> int:
    """Return the bytes of a record's arrays, as they travel."""
    return sum(len(array.data) for array in arrays.values())


def count_packed(tensor: Tensor) -> int:
    """Return the bytes that a tensor has in a record, those of a ``.npy`` file, without packing it."""
    scalar = torch.zeros((), dtype=exchanged_dtype(tensor)).numpy()
    array, header = np.broadcast_to(scalar, tuple(tensor.shape)), io.BytesIO()  # which needs no memory of that size
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.tell() + array.nbytes


def read_tensors(record: ArrayRecord, sender: str = SERVER) -> dict[str, Tensor]:
    """Return the tensors of a record, to be read only: they lie where its bytes do. Reject one that is no array."""
    try:
        with warnings.catch_warnings():
            # numpy's on odd headers, and torch's that what it sees must not be written to
            warnings.simplefilter("ignore", UserWarning)
            return {name: _read_array(array) for name, array in record.items()}
    except Exception as error:  # bytes that are no array make numpy and torch raise almost anything
        raise ReplyError(f"{sender} sent arrays that cannot be read: {type(error).__name__}: {error}") from error


def _read_array(array: Array) -> Tensor:
    """Return the tensor in the bytes of an array, which are those of a ``.npy`` file."""
    expected = "numpy.ndarray"  # how Flower names the only form in which it serialises arrays
    if array.stype != expected:
        raise ValueError(f"serialised as {array.stype!r}, expected {expected!r}")
    file = io.BytesIO(array.data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    size = math.prod(shape) * dtype.itemsize
    if len(array.data) - file.tell() != size:
        raise ValueError(f"{len(array.data) - file.tell()} bytes of values, expected {size}")
    return torch.from_numpy(np.ndarray(shape, dtype, array.data, file.tell(), order="F" if by_columns else "C"))


def pack_changes(changes: Changes) -> dict[str, ArrayRecord]:
    """Return what parameters changed by as records, by their names."""
    scales = {} if changes.scales is None else {SCALES: ArrayRecord({SCALES: changes.scales})}
    return {CHANGES: ArrayRecord(dict(changes.tensors)), **scales}


def unpack_trained(
    records: Mapping[str, ArrayRecord], upload: Upload, plan: Plan, sender: str
) -> Mapping[str, Tensor] | Changes:
    """Return the parameters of a reply, or what they changed by.

    Before anything is read, other records than those of its form are rejected, other names, and far more bytes than
    those of its plan.
    """
    expected = UPLOAD_RECORDS[upload]
    if set(records) != set(expected):
        raise ReplyError(f"{sender} sent records {shown(list(records))}, expected {' and '.join(expected)} alone")
    check_names(plan, records[expected[0]])
    check_sizes(records[expected[0]], {name: math.prod(shape) for name, shape in plan.shapes.items()}, sender)
    tensors = read_tensors(records[expected[0]], sender)
    if upload == "float32":
        return tensors
    if upload == "float16":
        return Changes(tensors)
    if list(records[SCALES]) != [SCALES]:
        raise ReplyError(f"{sender} sent {shown(list(records[SCALES]))} in record {SCALES}, expected {SCALES} alone")
    check_sizes(records[SCALES], {SCALES: plan.parameters}, sender)
    return Changes(tensors, read_tensors(records[SCALES], sender)[SCALES])


def pack_moments(moments: Mapping[float, Moments]) -> ArrayRecord:
    """Return static batch norm moments by rate as one record."""
    return ArrayRecord(moment_tensors(moments))


def moment_tensors(moments: Mapping[float, Moments]) -> dict[str, Tensor]:
    """Return static batch norm moments by rate as tensors, with the rate and a slash before each name."""
    return {f"{rate}/{name}": tensor for rate, own in moments.items() for name, tensor in own.to_tensors().items()}


def unpack_moments(record: ArrayRecord, rate: float, sender: str = SERVER) -> Moments:
    """Return the moments of one rate that a record holds; reject a record that lacks them."""
    prefix = f"{rate}/"
    tensors = read_tensors(record, sender)
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not own:
        raise ReplyError(f"{sender} sent no moments of rate {rate}")
    try:
        return Moments.from_tensors(own)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise ReplyError(f"{sender} sent moments of rate {rate} that cannot be used: {error}") from error
