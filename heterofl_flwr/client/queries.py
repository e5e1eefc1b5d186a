"""Answers of a node to the server's queries."""

from collections.abc import Callable
from typing import get_args

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from heterofl_flwr.client.imports import check_imports
from heterofl_flwr.client.node_config import read_capability, read_rate
from heterofl_flwr.client.outgoing import check_types
from heterofl_flwr.client.stages import ClientChain
from heterofl_flwr.client.state import NodeFiles, load_notes, save_notes
from heterofl_flwr.client.task import Task
from heterofl_flwr.common.errors import ConfigError, check_takes
from heterofl_flwr.core.fidelity import Variant
from heterofl_flwr.nn.build import check_build
from heterofl_flwr.nn.measure_moments import Batches, collect_moments
from heterofl_flwr.nn.models import Build
from heterofl_flwr.stages.client_stage import ClientContext
from heterofl_flwr.stages.registry import read_stages
from heterofl_flwr.transport import messages, reading
from heterofl_flwr.transport.arrays import pack_moments


def answer_queries(
    app: ClientApp,
    build: Build | None = None,
    data: Callable[[Context], Batches] | None = None,
    *,
    build_from: Callable[[Context], Build] | None = None,
    capacity: Callable[[Context], str | float] | None = None,
) -> None:
    """Let a ClientApp answer the server's queries.

    Parameters
    ----------
    app : ClientApp
        Your app.
    build : Callable[[float], nn.Module]
        Function of a rate that returns the model. The server uses the same function.
    data : Callable[[Context], Batches] | None
        Function of the context that returns batches of training inputs, for static batch norm. A batch is the input of
        the model, or a tuple, list or mapping whose first entry is the input: a tensor, or a tuple, list or mapping of
        the model's arguments. Without ``data``, the node reports no moments. If no node reports moments, batch norm
        uses the statistics of each batch in evaluations too.
    build_from : Callable[[Context], Callable[[float], nn.Module]] | None
        Function of the context that returns ``build``, for a model that depends on the ``run_config``. Pass either
        ``build`` or ``build_from``.
    capacity : Callable[[Context], str | float] | None
        Function of the context that returns the largest level or rate that this node can train. It is called only if
        the node config has neither ``level`` nor ``rate``.
    """
    if (build is None) == (build_from is None):
        raise ConfigError(
            "answer_queries takes either build, or build_from, a function of the context that returns build"
        )
    check_types(("app", app, ClientApp))
    if build is not None:
        check_build(build)
    for name, function in {"data": data, "build_from": build_from, "capacity": capacity}.items():
        check_takes(name, function, "context")

    def moments(message: Message, context: Context) -> Message:
        function = build_from(context) if build_from and data else build
        if data is None or function is None:
            return messages.answer(message, {})
        return answer_moments(Task(message, context, function), lambda: data(context))

    app.query("capability")(lambda message, context: answer_capability(message, context, capacity))
    app.query("stages")(answer_stages)
    app.query("moments")(moments)


def answer_capability(
    message: Message, context: Context, capacity: Callable[[Context], str | float] | None = None
) -> Message:
    """Return the reply to ``query.capability``: the node's rate, partition and number of partitions.

    ``capacity`` is the argument of ``answer_queries``.
    """
    check_imports()
    fields = read_capability(context)
    if capacity is not None and messages.CAPACITY not in fields:
        fields[messages.CAPACITY] = read_rate(capacity(context), "capacity(context)")
    return messages.answer(message, fields)


def answer_stages(message: Message, context: Context) -> Message:
    """Return the reply to ``query.stages``, with the answers of the client stages; save their per-round state."""
    config, notes, node_config = reading.read_config(message), load_notes(context), context.node_config
    records = NodeFiles.of(node_config)
    stages = ClientContext(
        received=dict, seed=0, config=config, round_state=notes, node_config=node_config, records=records
    )
    answers = ClientChain(read_stages(config), stages).answer()
    save_notes(context, notes)
    return messages.answer(message, answers)


def answer_moments(
    task: Task, batches: Callable[[], Batches], device: torch.device | str = "cpu", *, together: int = 1
) -> Message:
    """Return the reply to ``query.moments``. For the arguments see ``measure_moments``."""
    return messages.answer(task.message, {}, {messages.MOMENTS: measure_moments(task, batches, device, together)})


def measure_moments(
    task: Task, batches: Callable[[], Batches], device: torch.device | str, together: int = 1
) -> ArrayRecord:
    """Measure the moments for static batch norm at each rate of a task; return them as a record.

    ``batches`` is called once for each rate. For ``together`` see ``collect_moments``.
    """
    variants: tuple[Variant, ...] = get_args(Variant)
    kind = reading.read_choice(task.config, messages.MOMENTS_KIND, variants)
    moments = {
        rate: collect_moments(model.to(device), batches(), kind=kind, together=together)
        for rate, model in task.models()
    }
    return pack_moments(moments)
