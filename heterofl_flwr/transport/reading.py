"""Checked reading of configs, records and replies. Error messages name the ``sender``."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as shown
from typing import TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.common.named_tensors import entries_under
from heterofl_flwr.core.check_reply import check_names
from heterofl_flwr.core.exchanged import ALL
from heterofl_flwr.core.label_rows import Labels
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.federation.capability import Capability
from heterofl_flwr.federation.client_metrics import SHARES, is_share
from heterofl_flwr.federation.collect_moments import Norms
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.stages.client_stage import FULL_PRECISION, TrainReply
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.arrays import check_sizes, content_bytes, read_tensors, unpack_moments
from heterofl_flwr.transport.messages import ARRAYS, CHANGES, CONFIG, SCALES, SERVER, UPLOAD_RECORDS

LARGEST_METRIC = 1e30
MOST_METRICS = 100
LONGEST_NAME = 100

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


def read_config(message: Message, sender: str = SERVER) -> ConfigRecord:
    """Return a message's config. Raise ``ReplyError`` if its schema version is missing or incompatible."""
    config = find_record(message.content, CONFIG, ConfigRecord) or ConfigRecord()
    check_schema(config, sender)
    return config


def find_record(content: RecordDict, name: str, kind: type[Value]) -> Value | None:
    """Return the record ``name``; None if it is missing or not of the class ``kind``."""
    record = content.get(name)
    return record if isinstance(record, kind) else None


def check_schema(config: Mapping[str, object], sender: str = SERVER) -> None:
    """Raise ``ReplyError`` if a config's schema version is missing or incompatible."""
    if messages.SCHEMA_KEY not in config:
        cause = messages.NOT_HETEROFL if sender == SERVER else messages.NOT_CONVERTED
        raise ReplyError(f"{sender} sent a message without the config of HeteroFL: {cause}")
    if config[messages.SCHEMA_KEY] != messages.SCHEMA:
        raise ReplyError(
            f"{sender} sent messages of schema {shown(config[messages.SCHEMA_KEY])}, expected {messages.SCHEMA}: "
            f"install the same version of heterofl-flwr on the server and on every node"
        )


def read_value(config: Mapping[str, object], key: str, kind: type[Value], sender: str = SERVER) -> Value:
    """Return a value of a config. Raise ``ReplyError`` if it is missing or not of the type ``kind``.

    If ``kind`` is float, an int is converted.
    """
    value: object = config.get(key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else value  # a larger integer, forged, may overflow a float
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise unexpected(value, key, kind.__name__, sender)
    return value


def read_optional(config: Mapping[str, object], key: str, kind: type[Value], sender: str = SERVER) -> Value | None:
    """Return a value of a config, or None if it is missing. Raise ``ReplyError`` if it is not of the type ``kind``."""
    return read_value(config, key, kind, sender) if key in config else None


def unexpected(value: object, key: str, expected: str, sender: str = SERVER) -> ReplyError:
    """Return a ``ReplyError`` for an unexpected value of ``key``."""
    return ReplyError(f"{sender} sent {shown(value)} as {key}, expected {expected}")


def read_list(config: Mapping[str, object], key: str, kind: type[Value], default: list[Value]) -> list[Value]:
    """Return a list of values of the type ``kind``, or ``default`` if the key is missing.

    Raise ``ReplyError`` if the value is not such a list.
    """
    value = config.get(key, default)
    if not isinstance(value, list) or not all(isinstance(entry, kind) for entry in value):
        raise unexpected(value, key, f"a list of {kind.__name__}")
    return list(value)


def read_rates(config: Mapping[str, object]) -> list[float]:
    """Return the rates in a message's config. If it has no list of rates, return the client's rate alone."""
    return read_list(config, messages.RATES, float, [read_value(config, messages.RATE, float)])


def read_shared(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the name patterns of the exchanged parameters; ``ALL`` if the config lacks the key."""
    return tuple(pattern for pattern in read_list(config, messages.SHARED, str, list(ALL)) if pattern)


def read_choice(
    config: Mapping[str, object], key: str, choices: Sequence[Value], default: str = "", sender: str = SERVER
) -> Value:
    """Return the value of a key, or ``default`` if the key is missing.

    Raise ``ReplyError`` if the value is none of ``choices``.
    """
    value = config.get(key, default)
    choice = next((choice for choice in choices if choice == value), None)
    if choice is None:
        raise unexpected(value, key, f"one of {', '.join(map(str, choices))}", sender)
    return choice


def array_records(content: RecordDict) -> dict[str, ArrayRecord]:
    """Return the array records of a message by name.

    Flower's ``content.array_records`` is not used, because it keeps the message in memory by a reference cycle.
    """
    return {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}


def unpack_trained(
    records: Mapping[str, ArrayRecord], form: str, plan: Plan, sender: str
) -> tuple[Mapping[str, Tensor], Tensor | None]:
    """Return a reply's tensors, and the scales of encoded changes. The scales are None if ``form`` has none.

    Raise ``ReplyError`` if the records do not fit the encoding ``form`` and the plan.
    """
    expected = UPLOAD_RECORDS[form]
    if set(records) != set(expected):
        raise ReplyError(
            f"{sender} sent records {shown(list(records))}, expected {' and '.join(expected)} alone: report further "
            f"numbers as metrics, which may be lists"
        )
    tensors = {}
    for name in expected:
        record, sizes = records[name], {name: plan.parameters}
        if name in (ARRAYS, CHANGES):
            check_names(plan, record)
            sizes = {parameter: math.prod(shape) for parameter, shape in plan.shapes.items()}
        elif list(record) != [name]:  # a single vector, which a stage splits
            raise ReplyError(f"{sender} sent {shown(list(record))} in record {name}, expected {name} alone")
        check_sizes(record, sizes, sender)
        tensors[name] = read_tensors(record, sender)
    return tensors[expected[0]], tensors[SCALES][SCALES] if SCALES in tensors else None


def check_converted(records: Iterable[ArrayRecord], plan: Plan, sender: str) -> None:
    """Raise ``ReplyError`` if a reply has the whole model instead of a slice."""
    full_shapes = {name: tuple(axis.size for axis in axes) for name, axes in plan.axes.items()}
    for record in records:
        shapes = {name: tuple(array.shape) for name, array in record.items() if name in full_shapes}
        if shapes == full_shapes != plan.shapes:
            raise ReplyError(
                f"{sender} sent the whole model, expected the slice that it was sent: {messages.NOT_CONVERTED}"
            )


def read_train_reply(reply: Message, plan: Plan, most: int, sender: str) -> TrainReply:
    """Return the content of a training reply. Raise ``ReplyError`` if a value is invalid.

    ``most`` is the largest number of examples that the client may report.
    """
    records = array_records(reply.content)
    check_converted(records.values(), plan, sender)
    config = read_config(reply, sender)
    form = read_choice(config, messages.UPLOAD, list(UPLOAD_RECORDS), FULL_PRECISION, sender)
    tensors, scales = unpack_trained(records, form, plan, sender)
    num_examples, metrics = read_metrics(reply, most, sender)
    labels = config.get(messages.LABELS)
    by_head = {} if labels is not None else entries_under(messages.HEAD_LABELS, config)
    for classes in by_head.values() or [labels]:  # the aggregator checks each class
        if classes is not None and not isinstance(classes, list):
            raise unexpected(classes, messages.LABELS, "a list of whole numbers", sender)
    return TrainReply(
        tensors=tensors,
        form=form,
        scales=scales,
        num_examples=num_examples,
        labels=cast("Labels | None", by_head or labels),
        capacity=read_optional(config, messages.CAPACITY, float, sender),
        metrics=metrics,
        fields=config,
        num_bytes=content_bytes(reply.content),
    )


def read_metrics(reply: Message, most: int, sender: str) -> tuple[int, dict[str, float]]:
    """Return a reply's number of examples, and all other metrics that are numbers.

    Raise ``ReplyError`` if the number of examples is missing, invalid or above ``most``, or if ``read_numbers`` refuses
    the metrics.
    """
    record = find_record(reply.content, messages.METRICS, MetricRecord)
    if record is None:
        raise ReplyError(f"{sender} sent no {messages.METRICS} record")
    metrics = dict(record)
    number = metrics.pop(messages.NUM_EXAMPLES, None)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
        raise ReplyError(
            f"{sender} sent {shown(number)} as {messages.NUM_EXAMPLES}, expected a whole number from 0 up to {most:,} "
            f"(Limits(examples=...), server.max-examples)"
        )
    return number, read_numbers(metrics, sender)


def list_metrics(reply: Message) -> list[str]:
    """Return the names of a reply's metrics that are lists."""
    record = find_record(reply.content, messages.METRICS, MetricRecord)
    return [name for name, value in record.items() if isinstance(value, list)] if record else []


def read_capability(reply: Message, sender: str) -> Capability:
    """Return a node's capacity and data partition from its reply."""
    config = read_config(reply, sender)
    return Capability(
        capacity=read_optional(config, messages.CAPACITY, float, sender),
        partition=read_optional(config, messages.PARTITION, int, sender),
        num_partitions=read_optional(config, messages.NUM_PARTITIONS, int, sender),
    )


def read_moments(reply: Message, norms: Norms, sender: str) -> dict[float, Moments]:
    """Return a reply's batch norm moments by rate; {} if the node has no data to measure them.

    ``norms`` has, for each rate, the numbers of channels by layer. Raise ``ReplyError`` if moments are too large,
    missing or invalid.
    """
    read_config(reply, sender)
    record = find_record(reply.content, messages.MOMENTS, ArrayRecord)
    if record is None:
        return {}
    most = 3 * sum(map(len, norms.values()))
    if len(record) > most:
        raise ReplyError(f"{sender} sent {len(record)} arrays of moments, expected {most}")
    widest = max((channels for layers in norms.values() for channels in layers.values()), default=0)
    check_sizes(record, dict.fromkeys(record, widest), sender)
    return {rate: unpack_moments(record, rate, sender) for rate in norms}


def read_numbers(metrics: Mapping[str, object], sender: str) -> dict[str, float]:
    """Return the metrics that are numbers.

    NaN replaces a share (``is_share``) outside 0 to 1, and any other number that is not finite or whose absolute value
    is above ``LARGEST_METRIC``. Raise ``ReplyError`` if there are too many numbers, or if a name is too long or not
    printable.
    """
    numbers = {
        name: value for name, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    wrong = [name for name in numbers if len(name) > LONGEST_NAME or not name.isprintable()]
    if len(numbers) > MOST_METRICS or wrong:
        what = f"{len(numbers)} metrics" if not wrong else f"a metric named {shown(wrong[0])}"
        raise ReplyError(
            f"{sender} sent {what}, expected up to {MOST_METRICS} with names of up to {LONGEST_NAME} printable letters"
        )
    unusable = {
        name: value
        for name, value in numbers.items()
        if not (0 <= value <= 1 if is_share(name) else abs(value) <= LARGEST_METRIC)
    }
    if unusable:
        logger.warning(
            "%s sent %s, which is left out of means: expected 0 to 1 for %s, and finite numbers up to %g for others",
            sender,
            shown(unusable),
            ", ".join(SHARES),
            LARGEST_METRIC,
        )
    return {name: math.nan if name in unusable else float(value) for name, value in numbers.items()}
