"""One training loop, in an app of the Message API and in a ``NumPyClient``."""

import torch
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from torch import nn

from heterofl_flwr import classic, client
from tests.federation.tiny import build_normed as build, inputs, make_app


def partition_of(context: Context) -> int:
    return int(context.node_config["partition-id"])


def learn(model: nn.Module, partition: int) -> list[int]:
    """Train on the node's own data, which are shuffled; return the classes of its examples."""
    data = inputs(partition)
    targets = data.sum(1).long().abs() % 4
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for rows in torch.randperm(len(data)).chunk(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[rows]), targets[rows]).backward()
        optimizer.step()
    return targets.tolist()


def judge(models, partition: int) -> dict[str, float]:
    """Return the mean output of the model of each rate, and an accuracy."""
    with torch.inference_mode():
        found = {f"output/{rate}": model(inputs(partition)).mean().item() for rate, model in models}
    return found | {"local-accuracy": next(iter(found.values())) % 1}


def train(message, context):
    task = client.Task(message, context, build, seed_torch=True)
    labels = learn(model := task.model(), partition_of(context))
    return task.reply(model, num_examples=len(labels), labels=labels, metrics={"labels-sum": sum(labels)})


def evaluate(message, context):
    task, partition = client.Task(message, context, build), partition_of(context)
    return task.reply(num_examples=6 + partition, metrics=judge(task.models(), partition))


class Client(NumPyClient):
    def __init__(self, context: Context):
        self.node, self.partition = context, partition_of(context)

    def get_properties(self, config):
        return classic.properties_of(self.node, moments=True)

    def fit(self, parameters, config):
        task = classic.Task(parameters, config, self.node, build, seed_torch=True)
        if task.asks_for_moments:
            return task.moments(lambda: [inputs(self.partition)])
        labels = learn(model := task.model(), self.partition)
        metrics = {"labels-sum": float(sum(labels))}
        return task.reply(model, num_examples=len(labels), labels=labels, metrics=metrics)

    def evaluate(self, parameters, config):
        task = classic.Task(parameters, config, self.node, build)
        metrics = judge(task.models(), self.partition)
        return 1 - metrics["local-accuracy"], 6 + self.partition, metrics


def client_fn(context: Context):
    return Client(context).to_client()


message_app = make_app(train, evaluate, build=build)
classic_app = ClientApp(client_fn=client_fn)
