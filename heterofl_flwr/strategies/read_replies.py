"""What replies of clients hold: checked, or rejected with the cause that Flower does not name."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from flwr.app import Message, MetricRecord
from flwr.serverapp.exception import AggregationError

from heterofl_flwr import messages, packing
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ReplyError, RoundError, short
from heterofl_flwr.federation.evaluation_round import Norms
from heterofl_flwr.federation.limits import Limits, read_number, read_numbers
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.federation.round import TrainReply
from heterofl_flwr.nn.moments import Moments


class FailedRound(RoundError, AggregationError):
    """A round that cannot go on, as Flower's own error: Flower ends the run as failed."""


@contextmanager
def as_flower_error() -> Iterator[None]:
    """Raise a ``RoundError`` as Flower's ``AggregationError`` too."""
    try:
        yield
    except RoundError as error:
        raise FailedRound(str(error)) from error


def check_converted(reply: Message, plan: Plan, sender: str) -> None:
    """Reject the reply of an app that is not converted: with the whole model for a slice."""
    whole = {name: tuple(axis.full for axis in axes) for name, axes in plan.axes.items()}
    for record in messages.array_records(reply.content).values():
        shapes = {name: tuple(array.shape) for name, array in record.items() if name in whole}
        if shapes == whole != plan.shapes:
            raise ReplyError(
                f"{sender} sent the whole model, expected the slice that it was sent: {messages.NOT_CONVERTED}"
            )


def read_train_reply(
    reply: Message, plan: Plan, limits: Limits, sender: str, weight_key: str = messages.NUM_EXAMPLES
) -> TrainReply:
    """Return what a reply to an instruction to train holds; refuse it if anything is missing or of another type."""
    check_converted(reply, plan, sender)
    config = messages.read_config(reply, sender)
    records = messages.array_records(reply.content)
    form = messages.read_form(config, sender)
    tensors, scales = packing.unpack_trained(records, form, plan, sender)
    num_examples, metrics = read_metrics(reply, limits, sender, weight_key)
    labels = config.get(messages.LABELS)  # the aggregator checks each
    if labels is not None and not isinstance(labels, list):
        raise messages.unexpected(labels, messages.LABELS, "a list of whole numbers", sender)
    return TrainReply(
        tensors=tensors,
        form=form,
        scales=scales,
        num_examples=num_examples,
        labels=cast("list[int] | None", labels),
        capacity=messages.read_optional(config, messages.CAPACITY, float, sender),
        metrics=metrics,
        said=config,
        num_bytes=sum(map(packing.count_bytes, records.values())),
    )


def read_metrics(
    reply: Message, limits: Limits, sender: str, weight_key: str = messages.NUM_EXAMPLES
) -> tuple[int, dict[str, float]]:
    """Return the number of examples, or what else is under its key, and the other metrics; lists are left out."""
    record = messages.find_record(reply.content, messages.METRICS, MetricRecord)
    if record is None:
        raise ReplyError(f"{sender} sent no {messages.METRICS} record")
    number = record.get(weight_key)
    if isinstance(number, float) and number.is_integer():
        number = int(number)  # ``reply`` sends the user's own metrics as floats
    num_examples = read_number(number, limits.examples, sender, weight_key)
    return num_examples, read_numbers(((key, own) for key, own in record.items() if key != weight_key), sender)


def list_metrics(reply: Message) -> set[str]:
    """Return the names of a reply's metrics that are lists."""
    records = (own for own in reply.content.values() if isinstance(own, MetricRecord))
    return {short(name) for record in records for name, value in record.items() if isinstance(value, list)}


def read_capability(reply: Message, sender: str) -> Capability:
    """Return what a node says of itself."""
    config = messages.read_config(reply, sender)
    return Capability(
        capacity=messages.read_optional(config, messages.CAPACITY, float, sender),
        partition=messages.read_optional(config, messages.PARTITION, int, sender),
        num_partitions=messages.read_optional(config, messages.NUM_PARTITIONS, int, sender),
        num_examples=messages.read_optional(config, messages.NUM_EXAMPLES, int, sender) or 0,
    )


def read_moments(reply: Message, norms: Norms, sender: str) -> dict[float, Moments]:
    """Return a reply's moments by rate; refuse what is far larger than those of these layers' channels."""
    messages.read_config(reply, sender)
    record = messages.array_records(reply.content).get(messages.MOMENTS)
    if record is None:
        raise ReplyError(f"{sender} sent no {messages.MOMENTS} record")
    most = 3 * sum(map(len, norms.values()))
    if len(record) > most:
        raise ReplyError(f"{sender} sent {len(record)} arrays of moments, expected {most}")
    widest = max((channels for own in norms.values() for channels in own.values()), default=0)
    packing.check_sizes(record, dict.fromkeys(record, widest), sender)
    return {rate: packing.unpack_moments(record, rate, sender) for rate in norms}
