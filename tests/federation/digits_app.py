"""A ClientApp as a user writes one: its own model, its own loop, three lines of ours."""

from collections.abc import Iterable
from functools import cache

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits
from torch import Tensor, nn

from heterofl_flwr.client import answer_queries, models_to_evaluate, reply, submodel
from heterofl_flwr.nn import CNN, class_mask, masked_cross_entropy

PER_CLIENT = 70


def build(rate: float) -> CNN:
    return CNN(channels=1, classes=10, hidden=(16, 32), rate=rate)


@cache
def digits() -> tuple[Tensor, Tensor]:
    images, targets = map(torch.from_numpy, load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return ((images.float().view(-1, 1, 8, 8) - 4.88) / 6.02)[order], targets[order]


def shard(context: Context) -> tuple[Tensor, Tensor]:
    images, targets = digits()
    first = int(context.node_config["partition-id"]) * PER_CLIENT
    return images[first : first + PER_CLIENT], targets[first : first + PER_CLIENT]


def fit(model: nn.Module, context: Context, epochs: int = 3) -> tuple[Tensor, float]:
    """Train a model on the node's own data; return the classes of its examples and the last loss."""
    images, targets = shard(context)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    mask = class_mask(targets.unique(), 10)
    for _ in range(epochs):
        for batch in torch.randperm(len(targets)).split(10):
            optimizer.zero_grad()
            loss = masked_cross_entropy(model(images[batch]), targets[batch], mask)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return targets, loss.item()


def accuracies(models: Iterable[tuple[float, nn.Module]], context: Context) -> dict[str, float]:
    """Return the accuracy of the model of each rate on the node's own data."""
    images, targets = shard(context)
    with torch.inference_mode():
        found = {rate: (model.eval()(images).argmax(1) == targets).float().mean().item() for rate, model in models}
    return {f"accuracy/{rate}": own for rate, own in found.items()} | {"local-accuracy": next(iter(found.values()))}


app = ClientApp()
answer_queries(app, build, data=lambda context: [shard(context)])


@app.train()
def train(message: Message, context: Context) -> Message:
    model = submodel(message, build, seed_torch=True)
    targets, loss = fit(model, context)
    return reply(message, model, num_examples=len(targets), labels=targets.tolist(), metrics={"train-loss": loss})


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return reply(message, num_examples=PER_CLIENT, metrics=accuracies(models_to_evaluate(message, build), context))
