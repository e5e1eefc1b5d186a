"""Clients with quadratic losses, each with a minimum of its own, for slow twins of stages with a penalty."""

import torch
from flwr.clientapp import ClientApp

from heterofl_flwr.client import Task, answer_queries
from tests.federation.tiny import Tiny

RATE, NODES = 0.2, 6
SIZES = {1.0: 8, 0.5: 4, 0.25: 2}
RATES = {"a1": [1.0] * 6, "a1-b1-c1": [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]}


def build(rate):
    return Tiny(rate).double()


def minimum_of(partition, rate):
    """Return the minimum of a client's loss."""
    generator = torch.Generator().manual_seed(partition)
    full = {name: torch.randn(own.shape, generator=generator).double() for name, own in Tiny(1.0).named_parameters()}
    return {name: full[name][tuple(map(slice, own.shape))] for name, own in build(rate).named_parameters()}


def make_app(steps_of, *, with_penalty=True):
    """Return an app whose clients take ``steps_of(partition)`` steps of SGD."""
    app = ClientApp()
    answer_queries(app, build)

    @app.train()
    def train(message, context):
        task = Task(message, context, build)
        model, partition = task.model(), context.node_config["partition-id"]
        minimum = minimum_of(partition, task.rate)
        sgd = torch.optim.SGD(model.parameters(), RATE)
        for _ in range(steps_of(partition)):
            sgd.zero_grad()
            loss = sum((own - minimum[name]).square().sum() / 2 for name, own in model.named_parameters())
            (loss + (task.penalty(model) if with_penalty else 0)).backward()
            sgd.step()
        return task.reply(model, num_examples=1)

    return app


def rounds_of(grid):
    """Return for each round the partitions that trained, in order."""
    rounds = {}
    for message in grid.of("train"):
        config = message.content["config"]
        rounds.setdefault(config["server-round"], []).append(config["partition"])
    return rounds.values()
