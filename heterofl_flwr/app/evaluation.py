"""How a node of our own app evaluates: the global model and each level's, or a model of its own."""

from collections.abc import Iterator
from itertools import chain

import torch
from flwr.app import Context, Message
from torch import nn

from heterofl_flwr import messages as wire
from heterofl_flwr.app.node import NODE_DATA, SERVER, build_of, clients_of, data_of, model_of, rate_of
from heterofl_flwr.app.task import Task, load_function
from heterofl_flwr.client import models_to_evaluate, reply, seed_of
from heterofl_flwr.data import Split
from heterofl_flwr.nn.static_norm import batch_norms, collect_moments, with_static_norm
from heterofl_flwr.training import evaluate, evaluate_both


def judge_sent(task: Task, message: Message, context: Context) -> Message:
    """Evaluate each rate's model on this client's test data, as it is and with the mask of its classes."""
    _, split, own = data_of(task, context)
    asked = wire.config_of(message, SERVER).get(wire.CLASSES)
    classes = torch.tensor(asked if isinstance(asked, list) else own)
    metrics: dict[str, float] = {}
    models = models_to_evaluate(message, build_of(task, message), seed_torch=True)
    for rate, model in models if len(split) else ():
        found = _judge(task, model.to(task.device), split, classes, seed_of(message))
        metrics |= {f"{name}/{rate}": value for name, value in found.items()}
        # The first is the largest: on every client's data it is the global model.
        metrics = {**found, **metrics} if "global-accuracy" not in metrics else metrics
    return reply(message, num_examples=len(split), metrics=metrics)


def judge_own(task: Task, message: Message, context: Context) -> Message:
    """Evaluate this client's own model: locally on its own test data, globally on all, where a node has them."""
    train, split, classes = data_of(task, context)
    model, seed = model_of(task, message, context), seed_of(message)
    if batch_norms(model):
        batches = chain(task.moments_batches(train, seed), _seed_batches(task, context, seed))
        moments = collect_moments(model, batches, task.settings.fidelity.moments, together=task.moments_together)
        model = with_static_norm(model, moments)
    metrics: dict[str, float] = {}
    if len(split):
        metrics = _judge(task, model, split, torch.tensor(classes), seed)
        if task.settings.evaluate.central and NODE_DATA not in context.node_config:
            whole = evaluate(
                model, task.whole_test(clients_of(context)), perplexity_kind=task.settings.fidelity.perplexity
            )
            metrics |= whole.metrics("global")
    by_level = {f"{name}/{rate_of(message)}": value for name, value in metrics.items()}
    return reply(message, num_examples=len(split), metrics=metrics | by_level)


def _seed_batches(task: Task, context: Context, seed: int) -> Iterator[torch.Tensor]:
    """Yield what FedH2L trains a model on beside a client's own data; its moments are those of both."""
    if task.settings.server.strategy == "fedh2l":
        yield from task.moments_batches(task.seeds(clients_of(context)), seed)


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
