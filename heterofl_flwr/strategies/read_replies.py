"""Replies of clients: in the order of the messages, checked, or rejected with the cause that Flower does not name."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from flwr.app import Error, Message, MetricRecord
from flwr.serverapp.exception import AggregationError

from heterofl_flwr import messages, packing
from heterofl_flwr.compat import SUPERLINK_NODE_ID, ErrorCode
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import HeteroFLError, ReplyError, RoundError
from heterofl_flwr.federation.evaluation_round import Norms
from heterofl_flwr.federation.limits import Limits, read_number, read_numbers, short
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.federation.round import SILENT, Fault, TrainReply
from heterofl_flwr.nn.moments import Moments

logger = logging.getLogger(__name__)

_OTHER_SIZE = ("Error(s) in loading state_dict", "size mismatch")
"""How torch says that a slice is not the model into which a client loads it."""


class FailedRound(RoundError, AggregationError):
    """A round that cannot go on, as Flower's own error: Flower ends the run as failed."""


@contextmanager
def as_flower_error() -> Iterator[None]:
    """Raise a ``RoundError`` as Flower's ``AggregationError`` too."""
    try:
        yield
    except RoundError as error:
        raise FailedRound(str(error)) from error


def explained(fault: str) -> str:
    """Return why a client failed, with the cause where torch's words say that a model has another size."""
    return f"{fault}; {messages.NOT_CONVERTED}" if any(words in fault for words in _OTHER_SIZE) else fault


def check_converted(reply: Message, plan: Plan, sender: str) -> None:
    """Reject the reply of an app that is not converted: with the whole model for a slice."""
    whole = {name: tuple(axis.full for axis in axes) for name, axes in plan.axes.items()}
    for record in messages.array_records(reply.content).values():
        shapes = {name: tuple(array.shape) for name, array in record.items() if name in whole}
        if shapes == whole != plan.shapes:
            raise ReplyError(
                f"{sender} sent the whole model, expected the slice that it was sent: {messages.NOT_CONVERTED}"
            )


_NO_HANDLER = re.compile(r"No (?:evaluate|query) function registered with name")


def in_order(sent: Sequence[Message], replies: Iterable[Message]) -> Iterator[tuple[int, Message | None]]:
    """Yield each node with its reply, or with None if it gave none, in the order of the messages sent.

    Only replies that come before their turn are held back, so replies that arrive in order are dropped one by one.
    Replies of nodes that were not asked, to another message than this, or a second one of the same node, are dropped
    with a warning.
    """
    order = [message.metadata.dst_node_id for message in sent]
    early: dict[int, Message] = {}
    pending = dict(zip(order, sent, strict=True))
    position = 0
    for reply in replies:
        node_id = reply.metadata.src_node_id
        if node_id == SUPERLINK_NODE_ID:  # which answers for a node that is gone
            # Looked up now: a message gets its id when it is sent, which may be after the first replies came.
            about = reply.metadata.reply_to_message_id
            node_id = next((own.metadata.dst_node_id for own in sent if own.metadata.message_id == about), node_id)
        if node_id not in pending or not _answers(reply, pending[node_id]):
            logger.warning("a reply of node %s is dropped: it was not asked this, or has answered already", node_id)
            continue
        del pending[node_id]
        early[node_id] = reply
        del reply  # the consumer alone decides how long a reply lives
        while position < len(order) and order[position] in early:
            yield order[position], early.pop(order[position])
            position += 1
    for node_id in order[position:]:
        yield node_id, early.pop(node_id, None)


def _answers(reply: Message, asked: Message) -> bool:
    """Whether a reply is one to this message, and not to that of an earlier round."""
    id_ = asked.metadata.message_id  # which some grids give to a copy only
    return not id_ or reply.metadata.reply_to_message_id == id_


def lacks_handler(error: Error) -> bool:
    """Whether a ClientApp has no function for what it was asked: to Flower it is one of the errors that apps raise."""
    return error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION and bool(_NO_HANDLER.search(error.reason or ""))


def read_fault(reply: Message) -> Fault | None:
    """Return why a node gave no usable reply, or None if it did."""
    if not reply.has_error():
        return None
    error = reply.error
    if isinstance(error, messages.SimulatedFault):
        return Fault(error.reason or "", "simulated")
    reason = short(explained(f"error {error.code}: {error.reason or 'no reason given'}"))
    return Fault(reason, "no handler" if lacks_handler(error) else "failed")


def read_each(
    sent: Sequence[Message],
    replies: Iterable[Message],
    read: Callable[[int, Message], None],
    refuse: Callable[[int, Fault], None],
    unusable: type[HeteroFLError] = ReplyError,
) -> None:
    """Read the replies in the order of the messages; ``refuse`` those that failed or for which ``read`` raises."""
    for node_id, reply in in_order(sent, replies):
        fault = Fault(SILENT, "silent") if reply is None else read_fault(reply)
        if reply is not None and fault is None:
            try:
                read(node_id, reply)
            except unusable as error:
                fault = Fault(short(str(error)), "rejected")
        if fault is not None:
            refuse(node_id, fault)


def read_train_reply(
    reply: Message, plan: Plan, limits: Limits, sender: str, weight_key: str = messages.NUM_EXAMPLES
) -> TrainReply:
    """Return what a reply to an instruction to train holds; refuse it if anything is missing or of another type."""
    check_converted(reply, plan, sender)
    config = messages.read_config(reply, sender)
    records = messages.array_records(reply.content)
    form = messages.read_upload(config, sender)
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
