"""A ClientApp with classes and metrics of its own, which knows nothing of secure aggregation."""

import torch
from flwr.clientapp import ClientApp

from heterofl_flwr.client import Task, answer_queries
from tests.federation.tiny import Tiny

CLASSES = 4


def classes_of(partition):
    """Return the classes of a client's data; the third client has all."""
    return None if partition % 3 == 2 else [partition % CLASSES, (partition + 1) % CLASSES]


app = ClientApp()
answer_queries(app, Tiny)


@app.train()
def train(message, context):
    """Add noise that the seed names to each parameter."""
    task = Task(message, context, Tiny, seed_torch=True)
    model = task.model()
    with torch.no_grad():
        for own in model.parameters():
            own += torch.randn(own.shape) / 10
    partition = context.node_config["partition-id"]
    metrics = {"loss": 1.5, "secret": float(partition)}
    return task.reply(model, num_examples=10 + partition, labels=classes_of(partition), metrics=metrics)


@app.evaluate()
def evaluate(message, context):
    """Answer at once."""
    return Task(message, context, Tiny).reply(num_examples=1, metrics={"local-accuracy": 0.5})
