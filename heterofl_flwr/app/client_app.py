"""The ClientApp behind ``flwr run``: trains and evaluates our models on a client's part of a data set."""

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from heterofl_flwr import messages as wire
from heterofl_flwr.app.task import Task, load_function, task_of
from heterofl_flwr.client import (
    answer_capability,
    answer_moments,
    capability_of,
    models_to_evaluate,
    reply,
    seed_of,
    submodel,
)
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.data import Split, load_dataset
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.learn import (
    TrainOptions,
    Work,
    evaluate_both,
    input_batches,
    keep_freed_memory,
    train_together,
)

NODE_DATA = "data-path"


class CohortApp(ClientApp):
    """A ClientApp that trains several clients together where a ``LocalGrid`` hands it their messages together."""

    @staticmethod
    def train_cohort(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """Train the slices of several messages, all of one rate, each on its own client's data."""
        task = task_of(contexts[0].run_config)
        options = [_options(task, message) for message in messages]
        if any(other != options[0] for other in options):
            raise HeteroFLError("the messages differ in learning rate, so their clients cannot train together")
        return _train(task, messages, contexts, options[0])


app = CohortApp()


@app.query("capability")
def capability_query(message: Message, context: Context) -> Message:
    """Say what this node can hold and which part of the data it has."""
    return answer_capability(message, context)


@app.query("moments")
def moments_query(message: Message, context: Context) -> Message:
    """Measure the static batch norm moments of this client's training data."""
    task = task_of(context.run_config)
    split, _, _ = _data(task, context)
    return answer_moments(
        message,
        task.build,
        lambda: input_batches(split, task.moments_batch_size),
        task.device,
        together=task.moments_together,
    )


@app.train()
def train_message(message: Message, context: Context) -> Message:
    """Train the slice that the message brings on this client's data."""
    task = task_of(context.run_config)
    return _train(task, [message], [context], _options(task, message))[0]


@app.evaluate()
def evaluate_message(message: Message, context: Context) -> Message:
    """Evaluate each rate's model on this client's test data, as it is and with the mask of its classes."""
    task = task_of(context.run_config)
    _, split, own = _data(task, context)
    asked = wire.config_of(message, "the server").get(wire.CLASSES)
    classes = torch.tensor(asked if isinstance(asked, list) else own)
    metrics: dict[str, float] = {}
    for rate, model in models_to_evaluate(message, task.build) if len(split) else ():
        found = _judge(task, model.to(task.device), split, classes, seed_of(message))
        metrics |= {f"{name}/{rate}": value for name, value in found.items()}
        # The first is the largest: on every client's data it is the global model.
        metrics = {**found, **metrics} if "global-accuracy" not in metrics else metrics
    return reply(message, num_examples=len(split), metrics=metrics)


def _train(
    task: Task, messages: Sequence[Message], contexts: Sequence[Context], options: TrainOptions
) -> list[Message]:
    """Train clients of one rate, and return their replies."""
    keep_freed_memory()
    parts = [_data(task, context) for context in contexts]
    try:
        models = _models(task, messages)
        works = [
            Work(
                model=model, split=split, seed=seed_of(message), classes=torch.tensor(classes) if task.masked else None
            )
            for message, model, (split, _, classes) in zip(messages, models, parts, strict=True)
        ]
        results = train_together(works, options, engine=task.settings.engine.name)
    except torch.OutOfMemoryError as error:
        # The launcher reads level and bytes from this, and goes on with fewer clients at once.
        rate = wire.value_of(wire.config_of(messages[0], "the server"), wire.RATE, float, "the server")
        raise HeteroFLError(f"out of memory at level {level_name(rate)} on {task.device}: {error}") from error
    return [
        reply(
            message,
            model,
            num_examples=result.examples,
            labels=classes if task.counts_labels else None,
            metrics={"loss": result.loss, "accuracy": result.accuracy},
        )
        for message, model, result, (_, _, classes) in zip(messages, models, results, parts, strict=True)
    ]


def _models(task: Task, messages: Sequence[Message]) -> list[nn.Module]:
    """Return a model for each message, on the device. A slice that several of them bring is read once."""
    if len(messages) == 1:
        return [submodel(messages[0], task.build).to(task.device)]
    models: list[nn.Module] = []
    for number, message in enumerate(messages):
        if number == 0 or not _bring_the_same(message, messages[number - 1]):
            model = submodel(message, task.build).to(task.device)
        models.append(copy.deepcopy(model))  # the next submodel may be this very module
    return models


def _bring_the_same(one: Message, other: Message) -> bool:
    """Return whether two messages of one rate bring the same parameters."""
    first, second = _parameters_of(one), _parameters_of(other)
    return first.keys() == second.keys() and all(first[name].data is second[name].data for name in first)


def _parameters_of(message: Message) -> Mapping[str, Array]:
    # Not array_records: what Flower returns there keeps the message alive until the garbage collector comes round.
    record = message.content.get(wire.ARRAYS)
    return record if isinstance(record, ArrayRecord) else {}


def _options(task: Task, message: Message) -> TrainOptions:
    """Return how a message asks its client to train."""
    config = wire.config_of(message, "the server")
    return task.options(wire.value_of(config, wire.LEARNING_RATE, float, "the server"))


def _judge(task: Task, model: nn.Module, split: Split, classes: torch.Tensor, seed: int) -> dict[str, float]:
    """Return the metrics of one model on one client's data."""
    plain, masked = evaluate_both(
        model,
        split,
        classes=classes,
        fill="zero" if task.masked else "none",
        seed=seed,
        perplexity_kind=task.settings.fidelity.perplexity,
    )
    metrics = {**plain.metrics("global"), **masked.metrics("local")}
    if task.settings.evaluate.metric:
        function = load_function(task.settings.evaluate.metric, "evaluate.metric")
        with torch.inference_mode():
            metrics |= {name: float(value) for name, value in function(model, split.inputs, split.targets).items()}
    return metrics


def _data(task: Task, context: Context) -> tuple[Split, Split, tuple[int, ...]]:
    """Return this node's training and test examples and its classes."""
    node = context.node_config
    if NODE_DATA in node:
        return _own_data(str(node[NODE_DATA]), task.device)
    said = capability_of(context)
    partition, number = said.get(wire.PARTITION), said.get(wire.NUM_PARTITIONS)
    if not isinstance(partition, int) or not isinstance(number, int):
        raise ConfigError(
            "this node does not know its data: start it with --node-config 'partition-id=0 num-partitions=10' for a "
            "part of data.name, or with --node-config 'data-path=\"/path/to/folder\"' for data of its own"
        )
    return task.part(partition, number)


@lru_cache(maxsize=2)
def _own_data(path: str, device: torch.device) -> tuple[Split, Split, tuple[int, ...]]:
    dataset = load_dataset(path)
    return dataset.train.to(device), dataset.test.to(device), tuple(dataset.train.targets.unique().tolist())
