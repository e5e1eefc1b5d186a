"""The client half of a stage. Each client's process must import the module that registers this half."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from reprlib import repr as shown
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, ReplyError
from heterofl_flwr.core.label_rows import Labels
from heterofl_flwr.nn.penalty import Quadratic
from heterofl_flwr.secure.client import NodeRecords

KEY = "client-stages"
"""Config key of a server's message: names of the client stages in order, separated by commas."""

State = dict[str, Tensor]
"""Tensors by name."""

Fields = Mapping[str, object]
"""Extra entries of a message's config, by key: numbers, text, bytes, and lists of these."""

FULL_PRECISION = "float32"
"""Value of ``form`` for an update that no stage has encoded."""

Value = bool | int | float | str

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """An update that a client is about to send.

    Attributes
    ----------
    tensors
        The trained parameters by name; a stage may replace them by the encoding that ``form`` names.
    form, scales
        Name of the encoding (``float32``, ``float16``, ``int8`` or ``masked``), and its step sizes.
    labels
        The classes of the client's data; None for all. Of the classifier, only the rows of these classes are averaged.
    num_examples, metrics
        The client's number of examples, and its metrics.
    fields
        Extra entries of the reply's config.
    """

    tensors: Mapping[str, Tensor]
    form: str = FULL_PRECISION
    scales: Tensor | None = None
    labels: Labels | None = None
    num_examples: int = 1
    metrics: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    fields: Fields = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReply(Outgoing):
    """A client's update as the server reads it, with the reported capacity (largest rate) and the size in bytes.

    ``capacity`` is None if the client reported none.
    """

    metrics: Mapping[str, float]
    capacity: float | None = None
    num_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientContext:
    """Data for a client stage: the server's instruction, and the data stored on the client.

    Attributes
    ----------
    received
        Function that returns the parameters sent by the server.
    seed
        Random seed for this client in this round.
    config
        Config of the message.
    total_step
        In ``on_update``, the sum of the learning rates of all local steps; in other methods 0. With momentum, this
        package's client app replaces the sum by the distance that a parameter moves in these steps at a constant
        gradient of 1.
    broadcast
        The client's slices of the tensors that ``ServerStage.broadcast`` returned, by parameter name.
    state
        Tensors that the stage stores on this client between tasks. Assign to its keys in ``on_update``.
    round_state
        Bytes that stages store only in the node's memory, such as secrets of one round.
    node_config
        Config of the node, which the server cannot set.
    records
        Records of the node that remain after the run; None without a ``states-path``.
    """

    received: Callable[[], Mapping[str, Tensor]]
    seed: int
    config: Fields = field(default_factory=dict)
    total_step: float = 0.0
    broadcast: Mapping[str, Tensor] = field(default_factory=dict)
    state: State = field(default_factory=dict)
    round_state: dict[str, bytes] = field(default_factory=dict)
    node_config: Fields = field(default_factory=dict)
    records: NodeRecords | None = None

    def stored(self, name: str, like: Tensor) -> Tensor:
        """Return a tensor of ``state``, or zeros if it is missing; raise ``ReplyError`` if its shape is another."""
        tensor = self.state.get(name)
        if tensor is not None and tensor.shape != like.shape:
            raise ReplyError(
                f"a stage stores {name} of shape {tuple(tensor.shape)} on this client, expected {tuple(like.shape)}: a "
                f"client whose stages store tensors must keep its rate; let it have its earlier level, or begin a new "
                f"run"
            )
        return torch.zeros_like(like) if tensor is None else tensor


class ClientStage:
    """The client half of a stage: a frozen dataclass. The server sends the values of its fields.

    Override ``on_update`` to change the update, or ``quadratic`` or ``penalty`` to add a term to the loss.
    """

    registered_name: ClassVar[str] = ""
    stateful: ClassVar[bool] = False
    """True if the stage assigns to ``context.state``. Then each client must have the same slice in all rounds."""

    def quadratic(self, context: ClientContext) -> Quadratic | None:
        """Return the penalty if it is a ``Quadratic`` of the parameters, else None.

        Clients with quadratic penalties can be trained together.
        """
        return None

    def penalty(self, model: nn.Module, context: ClientContext) -> Tensor | float:
        """Return the term to add to the client's loss; by default, the penalty of ``quadratic``, or 0 without one."""
        quadratic = self.quadratic(context)
        return 0.0 if quadratic is None else quadratic(model)

    def on_update(self, update: Outgoing, context: ClientContext) -> Outgoing:
        """Return the update to send, for example a clipped, compressed or masked ``update``."""
        return update


class RespondingStage(ClientStage):
    """A client stage that also answers queries of the server."""

    def answer(self, context: ClientContext) -> Fields:
        """Return the answer to the question in ``context.config``."""
        return {}


CLIENT_METHODS = ("quadratic", "penalty", "on_update")
SERVER_METHODS = ("client", "broadcast", "on_reply", "on_added", "on_mean", "evaluated", "state", "load", "metrics")

CLIENT_STAGES: dict[str, type[ClientStage]] = {}
"""Registered client stages by name."""

Kind = TypeVar("Kind", bound=ClientStage)


def client_stage(name: str) -> Callable[[type[Kind]], type[Kind]]:
    """Return a decorator that registers a class as the client stage ``name``."""

    def register(kind: type[Kind]) -> type[Kind]:
        place = f"{kind.__module__}.{kind.__qualname__}"
        registered = CLIENT_STAGES.get(name)
        if not _NAME.fullmatch(name):
            raise ConfigError(f"client_stage: the name is {name!r}; expected lower-case letters, digits and hyphens")
        if registered and (taken_by := f"{registered.__module__}.{registered.__qualname__}") != place:
            raise ConfigError(f"client_stage: {name!r} is {taken_by}; expected a new name")
        _check_class(kind)
        kind.registered_name = name
        CLIENT_STAGES[name] = kind
        return kind

    return register


def _check_class(kind: type[ClientStage]) -> None:
    if not is_dataclass(kind) or not getattr(kind, "__dataclass_params__").frozen:  # noqa: B009 - unknown to mypy
        raise ConfigError(
            f"{kind.__name__}: expected a frozen dataclass, as its fields travel: @dataclass(frozen=True)"
        )
    if misplaced := [name for name in SERVER_METHODS if callable(getattr(kind, name, None))]:
        raise ConfigError(f"{kind.__name__}.{misplaced[0]} is not called on clients; it belongs in a ServerStage")
    if kind.quadratic is not ClientStage.quadratic and kind.penalty is not ClientStage.penalty:
        raise ConfigError(f"{kind.__name__} overrides quadratic and penalty; expected only one of them")
    wrong = [f"{name} is {hint}" for name, hint in _field_types(kind).items() if hint not in (bool, int, float, str)]
    if wrong:
        raise ConfigError(f"{kind.__name__}: {', '.join(wrong)}; expected fields of bool, int, float or str")


def _field_types(kind: type[ClientStage]) -> dict[str, Any]:
    hints: dict[str, Any] = get_type_hints(kind)
    types = {option.name: hints[option.name] for option in fields(kind)}  # type: ignore[arg-type]
    return {name: type(get_args(hint)[0]) if get_origin(hint) is Literal else hint for name, hint in types.items()}


def write_stages(stages: Iterable[ClientStage]) -> dict[str, Value]:
    """Return config entries with the names of the client stages and the values of the stages' fields."""
    named = {stage.registered_name: stage for stage in stages}
    config: dict[str, Value] = {KEY: ",".join(named)}
    for name, stage in named.items():
        config |= {f"{name}.{key}": getattr(stage, key) for key in _field_types(type(stage))}
    return config


def read_stages(config: Fields) -> list[ClientStage]:
    """Return the client stages that a config describes; raise ``ReplyError`` if a stage is unknown or invalid."""
    names = config.get(KEY, "")
    listed = names.split(",") if isinstance(names, str) and names else []
    if not isinstance(names, str) or len(set(listed)) < len(listed):
        raise ReplyError(f"the server sent {shown(names)} as {KEY}, expected different names with commas")
    return [_read_stage(name, config) for name in listed]


def _read_stage(name: str, config: Fields) -> ClientStage:
    kind = CLIENT_STAGES.get(name)
    if kind is None:
        raise ReplyError(
            f"the server asks for the client stage {shown(name)}, which this client does not know: import the "
            f"module with @client_stage({shown(name)}) in the client app; it knows {', '.join(CLIENT_STAGES)}"
        )
    types = _field_types(kind)
    values = {key: _read_field(f"{name}.{key}", config.get(f"{name}.{key}"), hint) for key, hint in types.items()}
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:  # a ConfigError is a ValueError
        raise ReplyError(f"the server sent fields of the client stage {name} that it refuses: {error}") from error


def _read_field(key: str, value: object, kind: type[Value]) -> Value:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ReplyError(f"the server sent {shown(value)} as {key}, expected a finite {kind.__name__}")
    return value
