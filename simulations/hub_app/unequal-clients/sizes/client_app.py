"""The client: trains the slice of the model that it is sent."""

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch.nn.functional import cross_entropy

from heterofl_flwr.client import Task, answer_queries
from sizes.data import load
from sizes.model import build

app = ClientApp()
answer_queries(app, build, data=lambda context: load(context)[0][0].split(100))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train a slice of the model, and reply with it."""
    (images, labels), _ = load(context)
    config = context.run_config
    task = Task(message, context, build, seed_torch=True)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=float(config["learning-rate"]), momentum=0.9)
    for _ in range(int(config["local-epochs"])):
        for rows in torch.randperm(len(labels)).split(int(config["batch-size"])):
            loss = cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    metrics = {"train-loss": loss.item()}
    return task.reply(model, num_examples=len(labels), labels=labels.unique().tolist(), metrics=metrics)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model on the node's own test images."""
    _, (images, labels) = load(context)
    task = Task(message, context, build)
    model = task.model()
    with torch.inference_mode():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    return task.reply(num_examples=len(labels), metrics={"local-accuracy": accuracy})
