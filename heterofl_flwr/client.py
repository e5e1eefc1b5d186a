"""What a Flower ClientApp calls: three functions around the user's own training loop.

::

    answer_queries(app, build, data=load)      # once: what this node can hold, and its data's moments

    @app.train()
    def train(message, context):
        model = submodel(message, build)       # the user's model at this message's rate, loaded
        ...                                    # the user's own loop
        return reply(message, model, num_examples=n, labels=classes, metrics={"train-loss": loss})
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from heterofl_flwr import messages as wire
from heterofl_flwr.core.fidelity import Choice
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.seeds import derive
from heterofl_flwr.errors import ConfigError, DataError, ReplyError
from heterofl_flwr.nn.static_norm import collect_moments, with_static_norm

Build = Callable[[float], nn.Module]
Batches = Iterable[Tensor | tuple[Tensor, ...] | list[Tensor]]

_SERVER = "the server"
_KEPT_MODELS = 16
_models: OrderedDict[tuple[Build, float], tuple[nn.Module, dict[str, Tensor]]] = OrderedDict()


def submodel(message: Message, build: Build) -> nn.Module:
    """Return the model at the message's rate with the parameters it brings.

    In an instruction to evaluate, batch norm gets the static moments that the message brings. torch's random state is
    seeded from the message, so equal runs are equal. Make a new optimizer each time: the model may be one that an
    earlier message of this process used.
    """
    config = wire.config_of(message, _SERVER)
    rate = wire.value_of(config, wire.RATE, float, _SERVER)
    model = next(own for own_rate, own in _models_at(message, build, [rate]) if own_rate == rate)
    torch.manual_seed(seed_of(message))
    return model.train(message.metadata.message_type == "train")


def seed_of(message: Message) -> int:
    """Return a seed that is a function of the run's seed, the round and the client."""
    config = wire.config_of(message, _SERVER)
    parts = [wire.value_of(config, key, int, _SERVER) for key in (wire.SEED, wire.SERVER_ROUND, wire.PARTITION)]
    return derive(parts[0], "client", *parts[1:])


def models_to_evaluate(message: Message, build: Build) -> Iterator[tuple[float, nn.Module]]:
    """Yield each rate that the message asks about and its model, cut from the parameters it brings."""
    config = wire.config_of(message, _SERVER)
    rates = config.get(wire.RATES, [config.get(wire.RATE)])
    if not isinstance(rates, list) or not all(isinstance(rate, float) for rate in rates):
        raise ReplyError(f"{_SERVER} sent {rates!r} as {wire.RATES}, expected a list of numbers")
    yield from _models_at(message, build, cast("list[float]", rates))


def reply(
    message: Message,
    model: nn.Module | None = None,
    *,
    num_examples: int,
    labels: Iterable[int] | None = None,
    metrics: Mapping[str, float] | None = None,
    capacity: str | float | None = None,
) -> Message:
    """Return the answer to an instruction.

    Parameters
    ----------
    message : Message
        The instruction.
    model : nn.Module | None
        The trained model; leave it out when evaluating. Its parameters travel, its buffers do not.
    num_examples : int
        How many examples were used.
    labels : Iterable[int] | None
        The classes of this client's data. Rows of the classifier count for these alone; None means all.
    metrics : Mapping[str, float] | None
        Numbers to report.
    capacity : str | float | None
        A level or rate, if what this node can hold has changed; it counts from the next round on.
    """
    config: dict[str, object] = {}
    if labels is not None:
        config[wire.LABELS] = sorted({int(label) for label in labels})
    if capacity is not None:
        config[wire.CAPACITY] = rate_of(capacity)
    numbers = {key: float(value) for key, value in (metrics or {}).items()}
    content = RecordDict({wire.CONFIG: wire.new_config(config)})
    content[wire.METRICS] = MetricRecord({**numbers, wire.NUM_EXAMPLES: int(num_examples)})
    if model is not None:
        content[wire.ARRAYS] = ArrayRecord(
            {name: own.detach().cpu() for name, own in model.named_parameters(remove_duplicate=False)}
        )
    return Message(content, reply_to=message)


def answer_queries(app: ClientApp, build: Build, data: Callable[[Context], Batches] | None = None) -> None:
    """Let a ClientApp answer the server's two questions.

    Parameters
    ----------
    app : ClientApp
        Your app; a handler for each query is added to it.
    build : Callable[[float], nn.Module]
        From a rate to the model, the same function as the server's.
    data : Callable[[Context], Batches] | None
        From the context to batches of this node's training inputs, for static batch norm: tensors, or tuples that
        begin with one. Without it the node does not answer ``query.moments``; then the server must not ask
        (``Evaluation(static_norm=False)``).
    """

    @app.query("capability")  # type: ignore[untyped-decorator, unused-ignore]
    def capability(message: Message, context: Context) -> Message:
        return Message(RecordDict({wire.CONFIG: wire.new_config(capability_of(context))}), reply_to=message)

    if data is None:
        return

    @app.query("moments")  # type: ignore[untyped-decorator, unused-ignore]
    def moments(message: Message, context: Context) -> Message:
        return answer_moments(message, build, lambda: data(context))


def capability_of(context: Context) -> dict[str, object]:
    """Return what a node's own config says: level or rate, and which part of the data it has."""
    node = context.node_config
    if wire.NODE_LEVEL in node and wire.NODE_RATE in node:
        raise ConfigError("the node config has both level and rate: keep one")
    said: dict[str, object] = {}
    capacity = node.get(wire.NODE_LEVEL, node.get(wire.NODE_RATE))
    if capacity is not None:
        said[wire.CAPACITY] = rate_of(capacity)
    for key, own in ((wire.PARTITION, wire.NODE_PARTITION), (wire.NUM_PARTITIONS, wire.NODE_NUM_PARTITIONS)):
        if own in node:
            value = node[own]
            if not isinstance(value, int) or isinstance(value, bool):
                raise ConfigError(f"the node config has {own}={value!r}; expected a whole number")
            said[key] = value
    return said


def answer_moments(message: Message, build: Build, batches: Callable[[], Batches]) -> Message:
    """Return the static batch norm moments of this node's data, for each rate that the message asks about."""
    kind = cast("Choice", wire.value_of(wire.config_of(message, _SERVER), wire.MOMENTS_KIND, str, _SERVER))
    moments = {
        rate: collect_moments(model, map(_inputs, batches()), kind=kind)
        for rate, model in models_to_evaluate(message, build)
    }
    content = RecordDict({wire.MOMENTS: wire.pack_moments(moments), wire.CONFIG: wire.new_config({})})
    return Message(content, reply_to=message)


def _models_at(message: Message, build: Build, rates: Iterable[float]) -> Iterator[tuple[float, nn.Module]]:
    config = wire.config_of(message, _SERVER)
    top = wire.value_of(config, wire.RATE, float, _SERVER)
    if wire.ARRAYS not in message.content.array_records:
        raise ReplyError(f"{_SERVER} sent no {wire.ARRAYS} record")
    state = message.content.array_records[wire.ARRAYS].to_torch_state_dict()
    moments = message.content.array_records.get(wire.MOMENTS)
    for rate in rates:
        model = fresh_model(build, rate)
        sub = state if rate == top else Plan.of(fresh_model(build, top), model).extract(state)
        load_parameters(model, sub)
        yield rate, model if moments is None else with_static_norm(model, wire.unpack_moments(moments, rate, _SERVER))


@torch.no_grad()
def load_parameters(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy parameters into a model; buffers stay. Refuse what does not fit, naming it."""
    own = dict(model.named_parameters(remove_duplicate=False))
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in own.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        shown = "; ".join(f"{name}: {found.get(name)}, expected {expected.get(name)}" for name in wrong[:3])
        raise ReplyError(f"{_SERVER} sent parameters that do not fit the model this node builds ({shown})")
    for name, parameter in own.items():
        parameter.copy_(state[name])


def fresh_model(build: Build, rate: float) -> nn.Module:
    """Return a model of a rate as if just built: kept from earlier messages, its buffers and gradients set back."""
    key = (build, rate)
    if key not in _models:
        model = build(rate)
        _models[key] = model, {name: buffer.clone() for name, buffer in model.named_buffers()}
        while len(_models) > _KEPT_MODELS:
            _models.popitem(last=False)
    _models.move_to_end(key)
    model, buffers = _models[key]
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.zero_grad(set_to_none=True)
    return model.train()


def _inputs(batch: object) -> Tensor:
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(first, Tensor):
        raise DataError(
            f"data for static batch norm gave a batch of {type(batch).__name__}; expected a tensor of inputs, or a "
            f"tuple that begins with one"
        )
    return first
