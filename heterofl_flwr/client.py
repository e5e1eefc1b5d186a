"""What a Flower ClientApp calls: three functions around the user's own training loop.

::

    answer_queries(app, build, data=load)      # once: what this node can hold, and its data's moments

    @app.train()
    def train(message, context):
        model = submodel(message, build)       # the user's model at this message's rate, loaded
        ...                                    # the user's own loop
        return reply(message, model, num_examples=n, labels=classes, metrics={"train-loss": loss})
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from heterofl_flwr import messages as wire
from heterofl_flwr.capability import answer_capability
from heterofl_flwr.core.compress import Upload, compress
from heterofl_flwr.core.fidelity import Choice
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.core.noise import clipped
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.core.seeds import derive
from heterofl_flwr.core.sharing import ALL, initial_state, is_shared
from heterofl_flwr.errors import DataError, ReplyError
from heterofl_flwr.learn.capacity import Trial
from heterofl_flwr.learn.device import resolve_device
from heterofl_flwr.nn.fresh import fresh_model
from heterofl_flwr.nn.moments import Moments
from heterofl_flwr.nn.static_norm import batch_norms, collect_moments, with_static_norm

Build = Callable[[float], nn.Module]
Batches = Iterable[Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]]

_SERVER = "the server"


def submodel(message: Message, build: Build, own: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return the model at the message's rate with the parameters it brings.

    Where the strategy shares only some of them (``HeteroFL(shared=...)``), the others are those that this client kept:
    ``own``, as ``own_part`` returned them when it last trained. Without, they are those of a model of the run's seed.

    In an instruction to evaluate, batch norm gets the static moments that the message brings, or normalises by batch
    where it brings none. torch's random state is seeded from the message, so equal runs are equal. Make a new optimizer
    each time: the model may be one that an earlier message of this process used.
    """
    rate = wire.value_of(wire.config_of(message, _SERVER), wire.RATE, float, _SERVER)
    return next(model for _, model in _models_at(message, build, [rate], own))


def own_part(message: Message, model: nn.Module) -> dict[str, Tensor]:
    """Return a trained model's parameters that stay with this client; keep them until the next ``submodel``."""
    shared = wire.shared_of(wire.config_of(message, _SERVER), _SERVER)
    return {name: tensor for name, tensor in parameters_of(model).items() if not is_shared(name, shared)}


def seed_of(message: Message) -> int:
    """Return a seed that is a function of the run's seed, the round and the client."""
    config = wire.config_of(message, _SERVER)
    parts = [wire.value_of(config, key, int, _SERVER) for key in (wire.SEED, wire.SERVER_ROUND, wire.PARTITION)]
    return derive(parts[0], "client", *parts[1:])


def share_of_work(message: Message) -> float:
    """Return after which share of its steps a client is to stop: 1, but where the strategy simulates devices."""
    return wire.work_of(wire.config_of(message, _SERVER), _SERVER)


def models_to_evaluate(message: Message, build: Build) -> Iterator[tuple[float, nn.Module]]:
    """Yield each rate that the message asks about and its model, cut from the parameters it brings.

    The models are as ``submodel`` returns them, and torch's random state is seeded before each.
    """
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
    """Return the answer to an instruction; parameters travel in the form that it asks for, and clipped if it does.

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
    records: Mapping[str, ArrayRecord] = {}
    if model is not None:
        upload = wire.upload_of(wire.config_of(message, _SERVER), _SERVER)
        records = _trained(message, model, upload)
        if upload != "float32":
            config[wire.UPLOAD] = upload
    said = MetricRecord({**numbers, wire.NUM_EXAMPLES: int(num_examples)})
    content = RecordDict({wire.CONFIG: wire.new_config(config), wire.METRICS: said, **records})
    return Message(content, reply_to=message)


def answer_queries(
    app: ClientApp, build: Build, data: Callable[[Context], Batches] | None = None, *, epochs: int = 1
) -> None:
    """Let a ClientApp answer the server's two questions.

    Parameters
    ----------
    app : ClientApp
        Your app; a handler for each query is added to it.
    build : Callable[[float], nn.Module]
        From a rate to the model, the same function as the server's.
    data : Callable[[Context], Batches] | None
        From the context to batches of this node's training inputs, for static batch norm: tensors, or tuples or
        mappings that begin with one. Without it the node does not answer ``query.moments``; then the server must not
        ask (``Evaluation(static_norm=False)``), and a node with ``level="auto"`` has nothing to measure itself with.
    epochs : int
        Passes over the data in a round, from which such a node reckons how long one takes it.
    """

    @app.query("capability")  # type: ignore[untyped-decorator, unused-ignore]
    def capability(message: Message, context: Context) -> Message:
        return answer_capability(message, context, data and (lambda: _trial(build, data(context), epochs)))

    if data is None:
        return

    @app.query("moments")  # type: ignore[untyped-decorator, unused-ignore]
    def moments(message: Message, context: Context) -> Message:
        return answer_moments(message, build, lambda: data(context))


def _trial(build: Build, batches: Batches, epochs: int) -> Trial:
    """Return what a node with such batches does in a round."""
    inputs = [inputs_of(batch) for batch in batches]
    return Trial(build, inputs[0] if inputs else torch.empty(0), epochs * len(inputs), resolve_device())


def answer_moments(
    message: Message,
    build: Build,
    batches: Callable[[], Batches],
    device: torch.device | str = "cpu",
    *,
    together: int = 1,
) -> Message:
    """Return the static batch norm moments of this node's data, for each rate that the message asks about.

    ``together`` is that of ``heterofl_flwr.nn.collect_moments``.
    """
    kind = cast("Choice", wire.value_of(wire.config_of(message, _SERVER), wire.MOMENTS_KIND, str, _SERVER))
    moments = {
        rate: collect_moments(model.to(device), map(inputs_of, batches()), kind=kind, together=together)
        for rate, model in models_to_evaluate(message, build)
    }
    content = RecordDict({wire.MOMENTS: wire.pack_moments(moments), wire.CONFIG: wire.new_config({})})
    return Message(content, reply_to=message)


def _state_of(message: Message) -> dict[str, Tensor]:
    records = wire.arrays_in(message.content)
    if wire.ARRAYS not in records:
        raise ReplyError(f"{_SERVER} sent no {wire.ARRAYS} record")
    return wire.tensors_of(records[wire.ARRAYS], _SERVER)


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters as they travel."""
    return {name: own.detach().cpu() for name, own in model.named_parameters(remove_duplicate=False)}


def _trained(message: Message, model: nn.Module, upload: Upload) -> dict[str, ArrayRecord]:
    config = wire.config_of(message, _SERVER)
    shared, clip = wire.shared_of(config, _SERVER), wire.clip_of(config, _SERVER)
    state = {name: tensor for name, tensor in parameters_of(model).items() if is_shared(name, shared)}
    if clip:
        state = clipped(_state_of(message), state, clip)
    if upload == "float32":
        return {wire.ARRAYS: ArrayRecord(state)}
    return wire.pack_changes(compress(_state_of(message), state, upload))


def _models_at(
    message: Message, build: Build, rates: Iterable[float], own: Mapping[str, Tensor] | None = None
) -> Iterator[tuple[float, nn.Module]]:
    config = wire.config_of(message, _SERVER)
    top = wire.value_of(config, wire.RATE, float, _SERVER)
    state: Mapping[str, Tensor] = _state_of(message)
    if (shared := wire.shared_of(config, _SERVER)) != ALL:
        kept = _first_part(config, build, top) if own is None else own
        state = {**{name: tensor for name, tensor in kept.items() if not is_shared(name, shared)}, **state}
    records = wire.arrays_in(message.content)
    seed = seed_of(message)
    for rate in rates:
        model = model_at(build, state, top, rate)
        if message.metadata.message_type.startswith("evaluate"):
            moments = wire.unpack_moments(records[wire.MOMENTS], rate, _SERVER) if wire.MOMENTS in records else None
            model = for_evaluation(model, moments)
        torch.manual_seed(seed)
        yield rate, model


def _first_part(config: ConfigRecord, build: Build, rate: float) -> dict[str, Tensor]:
    """Return a rate's slice of the model that the run began with."""
    seed = wire.value_of(config, wire.SEED, int, _SERVER)
    top = wire.value_of(config, wire.GLOBAL_RATE, float, _SERVER)
    return _plan(build, top, rate).extract(initial_state(build, top, seed))


def model_at(build: Build, state: Mapping[str, Tensor], top: float, rate: float) -> nn.Module:
    """Return the model of a rate with parameters cut from a state of rate ``top``."""
    model = fresh_model(build, rate)
    load_parameters(model, state if rate == top else _plan(build, top, rate).extract(state))
    return model


def for_evaluation(model: nn.Module, moments: Moments | None) -> nn.Module:
    """Return the model in evaluation mode; its batch norm uses these moments or, without any, those of each batch."""
    if moments is not None:
        return with_static_norm(model, moments)
    if any(layer.running_mean is not None for layer in batch_norms(model).values()):
        # The running statistics are those of a fresh model. They mean nothing, and none ever travel.
        model = copy.deepcopy(model)
        for layer in batch_norms(model).values():
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    return model.eval()


@lru_cache(maxsize=64)
def _plan(build: Build, top: float, rate: float) -> Plan:
    return Plan.of(build(top), build(rate))


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


def inputs_of(batch: object) -> Tensor:
    """Return the model's input of a batch for static batch norm."""
    first = batch
    if isinstance(batch, tuple | list | Mapping) and batch:
        first = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    if not isinstance(first, Tensor):
        raise DataError(
            f"data for static batch norm gave a batch of {type(batch).__name__}; expected a tensor of inputs, or a "
            f"tuple or a mapping that begins with one"
        )
    return first
