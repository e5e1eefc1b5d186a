"""One training loop, in an app of the Message API and in a ``NumPyClient``."""

import torch
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from torch import nn

from heterofl_flwr import classic, client
from tests.federation.tiny import build_normed as build
from tests.federation.tiny import inputs, make_app


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
    model, partition = client.submodel(message, build, context=context, seed_torch=True), partition_of(context)
    labels = learn(model, partition)
    return client.reply(
        message, model, num_examples=len(labels), labels=labels, metrics={"labels-sum": sum(labels)}, context=context
    )


def evaluate(message, context):
    partition = partition_of(context)
    metrics = judge(client.models_to_evaluate(message, build, context=context), partition)
    return client.reply(message, num_examples=6 + partition, metrics=metrics)


class Client(NumPyClient):
    def __init__(self, context: Context):
        self.own, self.partition = context, partition_of(context)

    def get_properties(self, config):
        return classic.properties_of(self.own, moments=True)

    def fit(self, parameters, config):
        if classic.asks_for_moments(config):
            return classic.answer_moments(parameters, config, build, lambda: [inputs(self.partition)])
        model = classic.submodel(parameters, config, build, context=self.own, seed_torch=True)
        labels = learn(model, self.partition)
        metrics = {"labels": classic.labels_text(labels), "labels-sum": float(sum(labels))}
        return classic.parameters_of(model, config, context=self.own), len(labels), metrics

    def evaluate(self, parameters, config):
        metrics = judge(classic.models_to_evaluate(parameters, config, build, context=self.own), self.partition)
        return 1 - metrics["local-accuracy"], 6 + self.partition, metrics


def client_fn(context: Context):
    return Client(context).to_client()


message_app = make_app(train, evaluate, build=build)
classic_app = ClientApp(client_fn=client_fn)
