"""How a node of our own app takes part in FedH2L and in the hybrid: it trains and publishes, then learns from others.

In FedH2L a node's model is its own and stays with it. In the hybrid it is a slice of its family's: it waits in the
node's state from the first exchange of a round to the second, and then returns to the server.
"""

from dataclasses import replace

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import nn

from heterofl_flwr import messages as wire
from heterofl_flwr.app.node import (
    SERVER,
    build_of,
    clients_of,
    data_of,
    keep_own,
    model_of,
    options_of,
    rate_of,
    work_of,
)
from heterofl_flwr.app.task import Task
from heterofl_flwr.client import parameters_of, reply
from heterofl_flwr.errors import HeteroFLError, ReplyError
from heterofl_flwr.training import train_together
from heterofl_flwr.training.distill import learn_from_peers, posteriors

WAITING, RECEIVED, SINCE = "waiting-slice", "received-slice", "waiting-since"
"""Records of a node's state: a slice that was trained, what it was before, and in which round."""


def publish(task: Task, message: Message, context: Context) -> Message:
    """Train on this client's own data, and say what its model then makes of the round's seed examples."""
    split, _, classes = data_of(task, context)
    model = model_of(task, message, context)
    trained = task.trained(model, rate_of(message), build_of(task, message))
    work = work_of(task, message, trained, split, classes)
    (result,) = train_together([work], options_of(task, message), engine=task.settings.engine.name)
    if task.personal:
        keep_own(task, message, context, model)
    else:
        _put_by(message, context, model)
    inputs, _ = _seeds(task, message, context)
    said = posteriors(model, inputs, _temperature(message)).cpu()
    content = RecordDict({wire.POSTERIORS: ArrayRecord({wire.POSTERIORS: said}), wire.CONFIG: wire.new_config({})})
    content[wire.METRICS] = MetricRecord(
        {wire.NUM_EXAMPLES: result.examples, "loss": result.loss, "accuracy": result.accuracy}
    )
    return Message(content, reply_to=message)


def learn(task: Task, message: Message, context: Context) -> Message:
    """Learn from what others published."""
    record = wire.arrays_in(message.content).get(wire.POSTERIORS)
    if record is None or list(record) != [wire.POSTERIORS]:
        raise ReplyError(f"{SERVER} sent no {wire.POSTERIORS} of peers")
    peers = wire.tensors_of(record, SERVER)[wire.POSTERIORS]
    split, _, classes = data_of(task, context)
    model = model_of(task, message, context) if task.personal else _take_up(task, message, context)
    distill = replace(task.settings.distill.to_core(), temperature=_temperature(message))
    work, options = work_of(task, message, model, split, classes), options_of(task, message)
    apart = learn_from_peers(work, _seeds(task, message, context), peers.to(task.device), options, distill)
    if task.personal:
        keep_own(task, message, context, model)
    labels = classes if task.counts_labels and not task.personal else None
    return reply(message, model, num_examples=len(split), labels=labels, metrics={"divergence": apart})


def _put_by(message: Message, context: Context, model: nn.Module) -> None:
    """Let a trained slice wait for the round's second exchange."""
    context.state[WAITING] = ArrayRecord(parameters_of(model))
    context.state[RECEIVED] = message.content[wire.ARRAYS]  # what changes are told against
    context.state[SINCE] = ConfigRecord({wire.SERVER_ROUND: _round(message)})


def _take_up(task: Task, message: Message, context: Context) -> nn.Module:
    """Return the slice that waits; the message then brings what it was before, as an instruction to train does."""
    waiting, received, since = (context.state.pop(name, None) for name in (WAITING, RECEIVED, SINCE))
    current = isinstance(since, ConfigRecord) and since[wire.SERVER_ROUND] == _round(message)
    if not current or waiting is None or received is None:
        raise HeteroFLError(
            f"this node has no slice that it trained in round {_round(message)}: it was started anew between the two "
            f"exchanges of the round; it takes part again when it is next drawn"
        )
    message.content[wire.ARRAYS] = waiting
    model = model_of(task, message, context)
    message.content[wire.ARRAYS] = received
    return model


def _round(message: Message) -> int:
    return wire.value_of(wire.config_of(message, SERVER), wire.SERVER_ROUND, int, SERVER)


def _temperature(message: Message) -> float:
    return wire.value_of(wire.config_of(message, SERVER), wire.TEMPERATURE, float, SERVER)


def _seeds(task: Task, message: Message, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels of the round's seed examples."""
    rows = wire.config_of(message, SERVER).get(wire.SEED_ROWS)
    seeds = task.seeds(clients_of(context))
    size = len(seeds)
    if not isinstance(rows, list) or not all(isinstance(row, int) and 0 <= row < size for row in rows):
        raise ReplyError(f"{SERVER} sent {rows!r} as {wire.SEED_ROWS}, expected a list of numbers from 0 to {size - 1}")
    chosen = seeds.take(torch.tensor(rows, device=task.device))
    return chosen.inputs, chosen.targets
