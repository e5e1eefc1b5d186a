"""The ClientApp behind ``flwr run``: trains and evaluates our models on a client's part of a data set."""

import copy
from collections.abc import Mapping, Sequence

import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from heterofl_flwr import messages as wire
from heterofl_flwr.app import peer_learning
from heterofl_flwr.app.evaluation import judge_own, judge_sent
from heterofl_flwr.app.node import (
    build_of,
    data_of,
    keep_own,
    model_of,
    options_of,
    rate_of,
    trial_of,
    work_of,
)
from heterofl_flwr.app.task import Task, task_of
from heterofl_flwr.capability import answer_capability
from heterofl_flwr.client import answer_moments, reply, seed_of
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.errors import HeteroFLError, OutOfMemoryError
from heterofl_flwr.training import TrainOptions, keep_freed_memory, train_together


class CohortApp(ClientApp):
    """A ClientApp that trains several clients together where a ``LocalGrid`` hands it their messages together."""

    @staticmethod
    def train_cohort(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """Train the slices of several messages, all of one rate, each on its own client's data."""
        task = task_of(contexts[0].run_config)
        options = [options_of(task, message) for message in messages]
        if any(other != options[0] for other in options):
            raise HeteroFLError("the messages differ in learning rate, so their clients cannot train together")
        return _train(task, messages, contexts, options[0])


app = CohortApp()


@app.query("capability")
def capability_query(message: Message, context: Context) -> Message:
    """Say what this node can hold and which part of the data it has."""
    return answer_capability(message, context, lambda: trial_of(task_of(context.run_config), context))


@app.query("moments")
def moments_query(message: Message, context: Context) -> Message:
    """Measure the static batch norm moments of this client's training data."""
    task = task_of(context.run_config)
    split, _, _ = data_of(task, context)
    return answer_moments(
        message,
        build_of(task, message),
        lambda: task.moments_batches(split, seed_of(message)),
        task.device,
        together=task.moments_together,
        seed_torch=True,
    )


@app.train()
def train_message(message: Message, context: Context) -> Message:
    """Train the slice that the message brings on this client's data."""
    task = task_of(context.run_config)
    return _train(task, [message], [context], options_of(task, message))[0]


@app.train("publish")
def publish_message(message: Message, context: Context) -> Message:
    """Train on this client's own data, and publish posteriors for others (FedH2L and the hybrid)."""
    keep_freed_memory()
    return peer_learning.publish(task_of(context.run_config), message, context)


@app.train("learn")
def learn_message(message: Message, context: Context) -> Message:
    """Learn from the posteriors of others (FedH2L and the hybrid)."""
    return peer_learning.learn(task_of(context.run_config), message, context)


@app.evaluate()
def evaluate_message(message: Message, context: Context) -> Message:
    """Evaluate the models that the message asks about, or this client's own."""
    task = task_of(context.run_config)
    return judge_own(task, message, context) if task.personal else judge_sent(task, message, context)


def _train(
    task: Task, messages: Sequence[Message], contexts: Sequence[Context], options: TrainOptions
) -> list[Message]:
    """Train clients of one rate, and return their replies."""
    keep_freed_memory()
    parts = [data_of(task, context) for context in contexts]
    try:
        models = _models(task, messages, contexts)
        works = [
            work_of(task, message, task.trained(model, rate_of(message), build_of(task, message)), split, classes)
            for message, model, (split, _, classes) in zip(messages, models, parts, strict=True)
        ]
        results = train_together(works, options, engine=task.settings.engine.name)
    except torch.OutOfMemoryError as error:
        rate = rate_of(messages[0])
        raise OutOfMemoryError(f"out of memory at level {level_name(rate)} on {task.device}: {error}") from error
    if task.personal:
        for message, context, model in zip(messages, contexts, models, strict=True):
            keep_own(task, message, context, model)
    return [
        reply(
            message,
            model,
            num_examples=result.examples,
            labels=classes if task.sends_labels else None,
            metrics={"loss": result.loss, "accuracy": result.accuracy},
        )
        for message, model, result, (_, _, classes) in zip(messages, models, results, parts, strict=True)
    ]


def _models(task: Task, messages: Sequence[Message], contexts: Sequence[Context]) -> list[nn.Module]:
    """Return a model for each message, on the device. A slice that several of them bring is read once."""
    if len(messages) == 1:
        return [model_of(task, messages[0], contexts[0])]
    models: list[nn.Module] = []
    for number, (message, context) in enumerate(zip(messages, contexts, strict=True)):
        if number == 0 or task.personal or not _bring_the_same(message, messages[number - 1]):
            model = model_of(task, message, context)
        models.append(copy.deepcopy(model))  # the next model may be this very module
    return models


def _bring_the_same(one: Message, other: Message) -> bool:
    """Return whether two messages of one rate bring the same parameters."""
    first, second = _parameters_of(one), _parameters_of(other)
    return first.keys() == second.keys() and all(first[name].data is second[name].data for name in first)


def _parameters_of(message: Message) -> Mapping[str, Array]:
    # Not array_records: what Flower returns there keeps the message alive until the garbage collector comes round.
    record = message.content.get(wire.ARRAYS)
    return record if isinstance(record, ArrayRecord) else {}
