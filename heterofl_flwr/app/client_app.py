"""The ClientApp behind ``flwr run``: trains and evaluates our models on a client's part of a data set."""

from functools import lru_cache

import torch
from flwr.app import Context, Message
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
from heterofl_flwr.learn import evaluate, input_batches, resolve_device, train

NODE_DATA = "data-path"

app = ClientApp()


@app.query("capability")
def capability_query(message: Message, context: Context) -> Message:
    """Say what this node can hold and which part of the data it has."""
    return answer_capability(message, context)


@app.query("moments")
def moments_query(message: Message, context: Context) -> Message:
    """Measure the static batch norm moments of this client's training data."""
    task = task_of(context.run_config)
    split, _, _ = _data(task, context)
    device = resolve_device(task.settings.engine.device)
    batch_size = task.settings.train.batch_size
    return answer_moments(message, task.build, lambda: input_batches(split.to(device), batch_size), device)


@app.train()
def train_message(message: Message, context: Context) -> Message:
    """Train the slice that the message brings on this client's data."""
    task = task_of(context.run_config)
    split, _, classes = _data(task, context)
    config = wire.config_of(message, "the server")
    learning_rate = wire.value_of(config, wire.LEARNING_RATE, float, "the server")
    device = resolve_device(task.settings.engine.device)
    model = submodel(message, task.build)
    try:
        result = train(
            model.to(device),
            split.to(device),
            task.options(learning_rate),
            classes=torch.tensor(classes) if task.masked else None,
            seed=seed_of(message),
        )
    except torch.OutOfMemoryError as error:
        # The launcher reads level and bytes from this, and goes on with fewer clients at once.
        level = level_name(wire.value_of(config, wire.RATE, float, "the server"))
        raise HeteroFLError(f"out of memory at level {level} on {device}: {error}") from error
    return reply(
        message,
        model,
        num_examples=result.examples,
        labels=classes if task.counts_labels else None,
        metrics={"loss": result.loss, "accuracy": result.accuracy},
    )


@app.evaluate()
def evaluate_message(message: Message, context: Context) -> Message:
    """Evaluate each rate's model on this client's test data, as it is and with the mask of its classes."""
    task = task_of(context.run_config)
    _, split, own = _data(task, context)
    device = resolve_device(task.settings.engine.device)
    split = split.to(device)
    asked = wire.config_of(message, "the server").get(wire.CLASSES)
    classes = torch.tensor(asked if isinstance(asked, list) else own)
    metrics: dict[str, float] = {}
    for rate, model in models_to_evaluate(message, task.build) if len(split) else ():
        found = _judge(task, model.to(device), split, classes)
        metrics |= {f"{name}/{rate}": value for name, value in found.items()}
        # The first is the largest: on every client's data it is the global model.
        metrics = {**found, **metrics} if "global-accuracy" not in metrics else metrics
    return reply(message, num_examples=len(split), metrics=metrics)


def _judge(task: Task, model: nn.Module, split: Split, classes: torch.Tensor) -> dict[str, float]:
    """Return the metrics of one model on one client's data."""
    plain = evaluate(model, split)
    masked = evaluate(model, split, classes=classes, fill="zero" if task.masked else "none")
    metrics = {
        "global-accuracy": plain.accuracy,
        "global-loss": plain.loss,
        "local-accuracy": masked.accuracy,
        "local-loss": masked.loss,
    }
    if task.settings.evaluate.metric:
        function = load_function(task.settings.evaluate.metric, "evaluate.metric")
        with torch.inference_mode():
            metrics |= {name: float(value) for name, value in function(model, split.inputs, split.targets).items()}
    return metrics


def _data(task: Task, context: Context) -> tuple[Split, Split, tuple[int, ...]]:
    """Return this node's training and test examples and its classes."""
    node = context.node_config
    if NODE_DATA in node:
        return _own_data(str(node[NODE_DATA]))
    said = capability_of(context)
    partition, number = said.get(wire.PARTITION), said.get(wire.NUM_PARTITIONS)
    if not isinstance(partition, int) or not isinstance(number, int):
        raise ConfigError(
            "this node does not know its data: start it with --node-config 'partition-id=0 num-partitions=10' for a "
            "part of data.name, or with --node-config 'data-path=\"/path/to/folder\"' for data of its own"
        )
    return _part(task, partition, number)


@lru_cache(maxsize=2)
def _own_data(path: str) -> tuple[Split, Split, tuple[int, ...]]:
    dataset = load_dataset(path)
    return dataset.train, dataset.test, tuple(dataset.train.targets.unique().tolist())


@lru_cache(maxsize=256)
def _part(task: Task, partition: int, num_partitions: int) -> tuple[Split, Split, tuple[int, ...]]:
    return task.part(partition, num_partitions)
