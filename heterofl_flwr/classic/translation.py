"""Conversion between messages and the types of Flower's classic API.

Arrays of the classic API have no names, so their order identifies them: first the parameters, in the order of the plan,
then the batch norm moments, rate by rate in the order of layers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from reprlib import repr as shown
from typing import cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import Code, ConfigRecordValues, EvaluateRes, FitRes, GetPropertiesRes, NDArrays, Parameters, Scalar

from heterofl_flwr.common.errors import ConfigError, ReplyError, short
from heterofl_flwr.core.exchanged import is_shared
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.nn.build import new_model, plan_between
from heterofl_flwr.nn.measure_moments import batch_norms
from heterofl_flwr.nn.models import Build
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.arrays import read_npy, reading_arrays
from heterofl_flwr.transport.compat import ensure_identity
from heterofl_flwr.transport.exchange import cause_of, explained
from heterofl_flwr.transport.messages import SERVER, LocalFault

Reply = FitRes | EvaluateRes | GetPropertiesRes

RESERVED = messages.RESERVED | {messages.TASK}
"""Keys of instructions that a user's config must not have."""

PROXIMAL_MU = "proximal_mu"
"""Key of the config in Flower's classic ``FedProx``."""

_ERROR_REPLY = re.compile(r"Message contains an Error \(reason: (.*)\)\. It originated during .*", re.DOTALL)
"""Text of Flower's exception for a client's error reply."""

_PROPERTIES = {messages.PARTITION, messages.NUM_PARTITIONS}
_NUMPY = "numpy.ndarray"
_OTHER_ARRAYS = (
    "let the server and this client have the same build, and an overridden initialize_parameters or aggregate_fit "
    "return one array for each parameter, as parameters_of(model) does"
)


def check_scalars(what: str, scalars: object) -> dict[str, Scalar]:
    """Return a user's config or metrics; raise ``ConfigError`` if they are not a mapping to scalars."""
    if not isinstance(scalars, Mapping):
        raise ConfigError(f"{what} is {shown(scalars)}; expected a dictionary")
    for key, value in scalars.items():
        if not isinstance(value, bool | bytes | float | int | str):
            raise ConfigError(
                f"{what} has {key}={shown(value)}; expected a bool, bytes, float, int or str, the types that Flower "
                f"sends in the classic API"
            )
    return dict(scalars)


def reported_metrics(answer: FitRes | EvaluateRes) -> dict[str, Scalar]:
    """Return the metrics in an answer, without the labels and the capacity that ``Task.reply`` adds to them."""
    added = {messages.LABELS, messages.CAPACITY} if isinstance(answer, FitRes) else set()
    return {key: value for key, value in answer.metrics.items() if key not in added}


def read_parameters(parameters: Parameters, sender: str = SERVER) -> list[Array]:
    """Return the arrays in ``parameters``, without copying the bytes."""
    if not isinstance(parameters, Parameters):
        raise ConfigError(
            f"initial_parameters, or what an overridden aggregate_fit returns, is a {type(parameters).__name__}; "
            f"expected Parameters, as from ndarrays_to_parameters(arrays)"
        )
    with reading_arrays(sender):
        arrays = [read_npy(data) for data in parameters.tensors]
    pairs = zip(arrays, parameters.tensors, strict=True)
    return [Array(str(array.dtype), array.shape, _NUMPY, data) for array, data in pairs]


def record_parameters(*records: ArrayRecord) -> Parameters:
    """Return the arrays of several records as ``Parameters``, without copying the bytes."""
    return Parameters([array.data for record in records for array in record.values()], _NUMPY)


def name_arrays(names: Sequence[str], arrays: Sequence[Array], sender: str = SERVER) -> ArrayRecord:
    """Return a record of named arrays; raise ``ReplyError`` if the numbers of arrays and names differ."""
    if len(arrays) != len(names):
        cause = _OTHER_ARRAYS if sender == SERVER else messages.NOT_CONVERTED
        raise ReplyError(f"{sender} sent {len(arrays)} arrays, expected {len(names)}; {cause}")
    return ArrayRecord(dict(zip(names, arrays, strict=True)))


def moment_names(kind: str, layers: Mapping[float, Iterable[str]]) -> list[str]:
    """Return the names of batch norm moments in sending order, such as ``0.5/paper.norm1.count``."""
    parts = ("count", "first", "second")
    return [f"{rate}/{kind}.{name}.{part}" for rate, names in layers.items() for name in names for part in parts]


def to_scalars(message: Message, task: str, kind: str) -> dict[str, Scalar]:
    """Return a message's config as scalars, with the task, the rates and, if the message has moments, their kind."""
    config = reading.read_config(message)
    scalars: dict[str, Scalar] = {
        key: _separator(key).join(map(str, value)) if isinstance(value, list) else value
        for key, value in config.items()
    }
    scalars |= {messages.TASK: task, messages.RATES: scalars.get(messages.RATES, str(config[messages.RATE]))}
    if messages.MOMENTS in message.content:
        scalars[messages.MOMENTS_KIND] = kind
    if messages.PROXIMAL_MU in scalars:
        scalars[PROXIMAL_MU] = scalars.pop(messages.PROXIMAL_MU)
    return scalars


def from_scalars(scalars: Mapping[str, Scalar]) -> ConfigRecord:
    """Convert ``scalars`` back to a config record; the inverse of ``to_scalars``."""
    reading.check_schema(scalars)
    config = ConfigRecord(cast("dict[str, ConfigRecordValues]", dict(scalars)))
    if messages.RATES in scalars:
        config[messages.RATES] = [float(rate) for rate in str(scalars[messages.RATES]).split(",")]
    if messages.SHARED in scalars:
        config[messages.SHARED] = str(scalars[messages.SHARED]).split(_separator(messages.SHARED))
    if PROXIMAL_MU in scalars:
        config[messages.PROXIMAL_MU] = scalars[PROXIMAL_MU]
    return config


def _separator(key: str) -> str:
    return "\n" if key == messages.SHARED else ","  # a pattern such as hidden.[0,1]* may have a comma


def to_message(parameters: NDArrays, config: ConfigRecord, build: Build) -> Message:
    """Return the arguments of ``NumPyClient.fit`` or ``evaluate`` as a message.

    The arrays in ``parameters`` get the names of the model's parameters and, after these, of its batch norm moments.
    """
    rate, shared = reading.read_value(config, messages.RATE, float), reading.read_shared(config)
    names = [name for name in plan_between(build, rate, rate).axes if is_shared(name, shared)]
    moments: list[str] = []
    if config.get(messages.TASK) == messages.TASK_EVALUATE and messages.MOMENTS_KIND in config:
        layers = {rate: batch_norms(new_model(build, rate)) for rate in reading.read_rates(config)}
        moments = moment_names(str(config[messages.MOMENTS_KIND]), layers)
    records = name_arrays([*names, *moments], [Array(array) for array in parameters])
    content = RecordDict(
        {messages.CONFIG: config, messages.ARRAYS: ArrayRecord({name: records[name] for name in names})}
    )
    if moments:
        content[messages.MOMENTS] = ArrayRecord({name: records[name] for name in moments})
    kinds = {messages.TASK_EVALUATE: "evaluate", messages.TASK_MOMENTS: messages.QUERY_MOMENTS}
    ensure_identity()
    return Message(content, 0, kinds.get(str(config.get(messages.TASK)), "train"))


def to_reply(message: Message, answer: Reply | Exception, names: Sequence[str] = ()) -> Message:
    """Return a client's answer, or its error, as a reply to ``message``.

    If the arrays in ``answer`` are batch norm moments, ``names`` are their names. If ``names`` is empty, the arrays are
    parameters, and have the names of the parameters in ``message``.
    """
    if isinstance(answer, Exception):
        return fail(message, error_text(answer))
    if (code := answer.status.code) != Code.OK:
        return fail(message, answer.status.message or code.name)
    try:
        return Message(_read(message, answer, names, f"node {message.metadata.dst_node_id}"), reply_to=message)
    except (ReplyError, TypeError) as error:  # TypeError: a value of a type that records do not allow
        return Message(LocalFault(short(str(error)), "rejected"), reply_to=message)


def error_text(error: BaseException) -> str:
    """Return the type and text of an error; of an error reply, the text of the client's own error."""
    reply = _ERROR_REPLY.fullmatch(str(error))
    return cause_of(reply[1]) if reply else f"{type(error).__name__}: {error}"


def fail(message: Message, reason: str) -> Message:
    """Return an error reply with a reason."""
    return Message(LocalFault(short(explained(reason))), reply_to=message)


def _read(message: Message, answer: Reply, names: Sequence[str], sender: str) -> RecordDict:
    if isinstance(answer, GetPropertiesRes):
        return RecordDict({messages.CONFIG: _read_config(answer.properties, _PROPERTIES, sender)})
    # Records hold no bool. As a number, a bool is averaged as in the Message API.
    numbers = {key: +value for key, value in reported_metrics(answer).items() if isinstance(value, int | float)}
    content = RecordDict()
    if isinstance(answer, EvaluateRes):
        numbers["loss"] = answer.loss
    else:
        content[messages.CONFIG] = _read_config(answer.metrics, {messages.LABELS}, sender)
        record = messages.MOMENTS if names else messages.ARRAYS
        expected = names or list(reading.array_records(message.content)[messages.ARRAYS])
        content[record] = name_arrays(expected, read_parameters(answer.parameters, sender), sender)
    content[messages.METRICS] = MetricRecord({**numbers, messages.NUM_EXAMPLES: answer.num_examples})
    return content


def _read_config(scalars: Mapping[str, Scalar], keys: Set[str], sender: str) -> ConfigRecord:
    fields: dict[str, object] = {key: scalars[key] for key in keys & scalars.keys()}
    if messages.LABELS in fields:
        text = str(fields[messages.LABELS])
        try:
            fields[messages.LABELS] = [int(label) for label in text.split(",") if label.strip()]
        except ValueError as error:
            raise reading.unexpected(text, messages.LABELS, "whole numbers, as in '3,7'", sender) from error
    if messages.CAPACITY in scalars:
        try:
            fields[messages.CAPACITY] = rate_of(scalars[messages.CAPACITY])  # type: ignore[arg-type]
        except ConfigError as error:
            raise ReplyError(f"the capacity it reports is not usable: {error}") from error
    return messages.new_config(fields)
