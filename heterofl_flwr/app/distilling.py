"""How a node of our own app takes part in FedH2L: it trains and publishes, then learns from its peers."""

from dataclasses import replace

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

from heterofl_flwr import messages as wire
from heterofl_flwr.app.node import SERVER, data_of, keep_own, model_of, options_of, work_of
from heterofl_flwr.app.task import Task
from heterofl_flwr.client import reply
from heterofl_flwr.errors import ReplyError
from heterofl_flwr.learn import Work, train_together
from heterofl_flwr.learn.distill import learn_from_peers, posteriors


def publish(task: Task, message: Message, context: Context) -> Message:
    """Train on this client's own data, and say what its model then makes of the round's seed examples."""
    work = _work(task, message, context)
    (result,) = train_together([work], options_of(task, message), engine=task.settings.engine.name)
    keep_own(task, message, context, work.model)
    inputs, _ = _seeds(task, message)
    said = posteriors(work.model, inputs, _temperature(message)).cpu()
    content = RecordDict({wire.POSTERIORS: ArrayRecord({wire.POSTERIORS: said}), wire.CONFIG: wire.new_config({})})
    content[wire.METRICS] = MetricRecord(
        {wire.NUM_EXAMPLES: result.examples, "loss": result.loss, "accuracy": result.accuracy}
    )
    return Message(content, reply_to=message)


def learn(task: Task, message: Message, context: Context) -> Message:
    """Learn from what this client's peers published."""
    work = _work(task, message, context)
    record = wire.arrays_in(message.content).get(wire.POSTERIORS)
    if record is None or list(record) != [wire.POSTERIORS]:
        raise ReplyError(f"{SERVER} sent no {wire.POSTERIORS} of peers")
    peers = wire.tensors_of(record, SERVER)[wire.POSTERIORS]
    distill = replace(task.settings.distill.to_core(), temperature=_temperature(message))
    inputs, targets = _seeds(task, message)
    options = options_of(task, message)
    apart = learn_from_peers(work, (inputs, targets), peers.to(task.device), options, distill)
    keep_own(task, message, context, work.model)
    return reply(message, work.model, num_examples=len(work.split), metrics={"divergence": apart})


def _work(task: Task, message: Message, context: Context) -> Work:
    split, _, classes = data_of(task, context)
    return work_of(task, message, model_of(task, message, context), split, classes)


def _temperature(message: Message) -> float:
    return wire.value_of(wire.config_of(message, SERVER), wire.TEMPERATURE, float, SERVER)


def _seeds(task: Task, message: Message) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels of the round's seed examples."""
    rows = wire.config_of(message, SERVER).get(wire.SEED_ROWS)
    size = len(task.seeds)
    if not isinstance(rows, list) or not all(isinstance(row, int) and 0 <= row < size for row in rows):
        raise ReplyError(f"{SERVER} sent {rows!r} as {wire.SEED_ROWS}, expected a list of numbers from 0 to {size - 1}")
    chosen = task.seeds.take(torch.tensor(rows, device=task.device))
    return chosen.inputs, chosen.targets
