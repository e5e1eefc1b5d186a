"""Packing tensors, metrics and moments into message records, and reading them with checks."""

import io
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from reprlib import repr as shown
from typing import cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError
from heterofl_flwr.common.named_tensors import entries_under
from heterofl_flwr.core.aggregation import Labels, check_names
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.federation.evaluation import SHARES, is_share
from heterofl_flwr.federation.evaluation_round import Norms
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.stages.client_stage import FULL_PRECISION, TrainReply
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.messages import ARRAYS, CHANGES, MASKED, SCALES, SERVER
from heterofl_flwr.transport.tensor_array import array_size, pack_tensors, read_live

UPLOAD_RECORDS: Mapping[str, tuple[str, ...]] = {
    FULL_PRECISION: (ARRAYS,),
    "float16": (CHANGES,),
    "int8": (CHANGES, SCALES),
    MASKED: (MASKED,),
}
"""Names of the records with parameters, by the form of a reply (``upload``)."""

LARGEST_METRIC = 1e30
MOST_METRICS = 100
LONGEST_NAME = 100

logger = logging.getLogger(__name__)

HEADER_BYTES = 1024
"""Upper bound on the header of an array in the ``.npy`` format."""


def check_sizes(record: ArrayRecord, entries: Mapping[str, int], sender: str) -> None:
    """Raise ``ReplyError`` if an array has more bytes than its ``entries`` have as float64; nothing is unpacked."""
    for name, array in record.items():
        most = 8 * entries.get(name, 0) + HEADER_BYTES
        if (size := array_size(array)) > most:
            raise ReplyError(f"{sender} sent {size:,} bytes as {name[:80]!r}, expected up to {most:,}")


def count_bytes(arrays: ArrayRecord) -> int:
    """Return the serialised size of a record's arrays in bytes."""
    return sum(map(array_size, arrays.values()))


@contextmanager
def reading_arrays(sender: str) -> Iterator[None]:
    """Within this context, turn any error into a ``ReplyError`` about arrays that cannot be read."""
    try:
        with warnings.catch_warnings():
            # numpy warns of unusual headers, and torch of arrays that must not be written to
            warnings.simplefilter("ignore", UserWarning)
            yield
    except Exception as error:  # invalid bytes can make numpy and torch raise almost any error
        raise ReplyError(f"{sender} sent arrays that cannot be read: {type(error).__name__}: {error}") from error


def read_tensors(record: ArrayRecord, sender: str = SERVER) -> dict[str, Tensor]:
    """Return the tensors of a record; raise ``ReplyError`` for invalid arrays.

    The tensors share memory with the record, so the caller must not change them.
    """
    expected = "numpy.ndarray"  # Flower's name of its only serialisation of arrays
    with reading_arrays(sender):
        if unexpected := {array.stype for array in record.values()} - {expected}:
            raise ValueError(f"serialised as {unexpected.pop()!r}, expected {expected!r}")
        return {name: _read_array(array) for name, array in record.items()}


def _read_array(array: Array) -> Tensor:
    tensor = read_live(array)
    return torch.from_numpy(read_npy(array.data)) if tensor is None else tensor


def read_npy(data: bytes) -> np.ndarray:
    """Return the array in the bytes of a ``.npy`` file; it shares their memory, so the caller must not change it.

    ``numpy.load`` is not used, because it also accepts archives of arrays and bytes after the array.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    size = math.prod(shape) * dtype.itemsize
    if len(data) - file.tell() != size:
        raise ValueError(f"{len(data) - file.tell()} bytes of values, expected {size}")
    return np.ndarray(shape, dtype, data, file.tell(), order="F" if by_columns else "C")


def pack_trained(tensors: Mapping[str, Tensor], scales: Tensor | None, form: str) -> dict[str, ArrayRecord]:
    """Return the array records of a reply: ``tensors`` in a form of upload, and ``scales`` if the form has them."""
    records = {UPLOAD_RECORDS[form][0]: pack_tensors(tensors)}
    return records if scales is None else {**records, SCALES: pack_tensors({SCALES: scales})}


def unpack_trained(
    records: Mapping[str, ArrayRecord], form: str, plan: Plan, sender: str
) -> tuple[Mapping[str, Tensor], Tensor | None]:
    """Return the tensors of a reply, which are parameters or changes of parameters, and the scales of changes.

    Raise ``ReplyError``, before anything is unpacked, for records of another form, unknown names, and far more bytes
    than the plan has.
    """
    expected = UPLOAD_RECORDS[form]
    if set(records) != set(expected):
        raise ReplyError(f"{sender} sent records {shown(list(records))}, expected {' and '.join(expected)} alone")
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


def pack_moments(moments: Mapping[float, Moments]) -> ArrayRecord:
    """Return the record of static batch norm moments by rate."""
    return pack_tensors(moment_tensors(moments))


def moment_tensors(moments: Mapping[float, Moments]) -> dict[str, Tensor]:
    """Return static batch norm moments by rate as tensors named ``rate/name``."""
    return {f"{rate}/{name}": tensor for rate, sums in moments.items() for name, tensor in sums.to_tensors().items()}


def moments_by_rate(tensors: Mapping[str, Tensor]) -> dict[float, Moments]:
    """Return moments by rate from tensors named ``rate/name``; the inverse of ``moment_tensors``."""
    by_rate: dict[float, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        rate, _, name = path.partition("/")
        by_rate.setdefault(float(rate), {})[name] = tensor
    return {rate: Moments.from_tensors(named) for rate, named in by_rate.items()}


def unpack_moments(record: ArrayRecord, rate: float, sender: str = SERVER) -> Moments:
    """Return the moments of one rate in a record; raise ``ReplyError`` if they are missing or invalid."""
    moments = entries_under(f"{rate}/", read_tensors(record, sender))
    if not moments:
        raise ReplyError(f"{sender} sent no moments of rate {rate}")
    try:
        return Moments.from_tensors(moments)
    except (ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise ReplyError(f"{sender} sent moments of rate {rate} that cannot be used: {error}") from error


def check_converted(records: Iterable[ArrayRecord], plan: Plan, sender: str) -> None:
    """Raise ``ReplyError`` if a reply has the whole model instead of a slice, as from an app not converted."""
    full_shapes = {name: tuple(axis.size for axis in axes) for name, axes in plan.axes.items()}
    for record in records:
        shapes = {name: tuple(array.shape) for name, array in record.items() if name in full_shapes}
        if shapes == full_shapes != plan.shapes:
            raise ReplyError(
                f"{sender} sent the whole model, expected the slice that it was sent: {messages.NOT_CONVERTED}"
            )


def read_train_reply(reply: Message, plan: Plan, most: int, sender: str) -> TrainReply:
    """Return the content of a training reply; raise ``ReplyError`` if anything is missing or of another type.

    ``most`` is the largest number of examples allowed.
    """
    records = messages.array_records(reply.content)
    check_converted(records.values(), plan, sender)
    config = messages.read_config(reply, sender)
    form = messages.read_choice(config, messages.UPLOAD, list(UPLOAD_RECORDS), FULL_PRECISION, sender)
    tensors, scales = unpack_trained(records, form, plan, sender)
    num_examples, metrics = read_metrics(reply, most, sender)
    labels = config.get(messages.LABELS)
    by_head = {} if labels is not None else entries_under(messages.HEAD_LABELS, config)
    for classes in by_head.values() or [labels]:  # the aggregator checks each class
        if classes is not None and not isinstance(classes, list):
            raise messages.unexpected(classes, messages.LABELS, "a list of whole numbers", sender)
    return TrainReply(
        tensors=tensors,
        form=form,
        scales=scales,
        num_examples=num_examples,
        labels=cast("Labels | None", by_head or labels),
        capacity=messages.read_optional(config, messages.CAPACITY, float, sender),
        metrics=metrics,
        fields=config,
        num_bytes=sum(map(count_bytes, records.values())),
    )


def read_metrics(reply: Message, most: int, sender: str) -> tuple[int, dict[str, float]]:
    """Return the number of examples in a reply, and its other metrics without lists.

    Raise ``ReplyError`` if there are more than ``most`` examples.
    """
    record = messages.find_record(reply.content, messages.METRICS, MetricRecord)
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


def read_capability(reply: Message, sender: str) -> Capability:
    """Return a node's capability from its answer to the capability query."""
    config = messages.read_config(reply, sender)
    return Capability(
        capacity=messages.read_optional(config, messages.CAPACITY, float, sender),
        partition=messages.read_optional(config, messages.PARTITION, int, sender),
        num_partitions=messages.read_optional(config, messages.NUM_PARTITIONS, int, sender),
    )


def read_moments(reply: Message, norms: Norms, sender: str) -> dict[float, Moments]:
    """Return the moments by rate in a reply; empty if the node has none.

    Raise ``ReplyError`` for arrays that are far larger than moments of the layers in ``norms``.
    """
    messages.read_config(reply, sender)
    record = messages.array_records(reply.content).get(messages.MOMENTS)
    if record is None:  # the node has no data to measure moments on
        return {}
    most = 3 * sum(map(len, norms.values()))
    if len(record) > most:
        raise ReplyError(f"{sender} sent {len(record)} arrays of moments, expected {most}")
    widest = max((channels for layers in norms.values() for channels in layers.values()), default=0)
    check_sizes(record, dict.fromkeys(record, widest), sender)
    return {rate: unpack_moments(record, rate, sender) for rate in norms}


def read_numbers(metrics: Mapping[str, object], sender: str) -> dict[str, float]:
    """Return the metrics that are numbers; a number out of bounds becomes NaN, which means leave out.

    Raises
    ------
    ReplyError
        If there are too many metrics, or a name is not a short line of text; the record of a run stores all of them.
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
            "%s sent %s, which counts in no mean: expected 0 to 1 of %s, and finite numbers up to %g of others",
            sender,
            shown(unusable),
            ", ".join(SHARES),
            LARGEST_METRIC,
        )
    return {name: math.nan if name in unusable else float(value) for name, value in numbers.items()}
