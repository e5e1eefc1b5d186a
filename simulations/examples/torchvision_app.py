"""A model of torchvision in a Flower app: a resnet18 that clients of five sizes train together.

``python -m simulations.examples.torchvision_app`` runs it here, with scikit-learn's 1,797 real digits. In an app of
your own, ``server`` and ``client`` are the components that ``pyproject.toml`` names.
"""

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch.nn.functional import cross_entropy, interpolate
from torchvision.models import resnet18  # type: ignore[import-untyped]

from heterofl_flwr import HeteroFL, LocalGrid, elastic
from heterofl_flwr.client import Task, answer_queries
from heterofl_flwr.data import Split, load_dataset, split_dataset
from heterofl_flwr.report import Console

build = elastic(resnet18(num_classes=10), torch.zeros(1, 3, 32, 32))  # the only line that makes models unequal
client, server = ClientApp(), ServerApp()
answer_queries(client, build, data=lambda context: load(context).inputs.split(32))


def load(context: Context, part: str = "train") -> Split:
    digits, clients = load_dataset("digits"), int(context.node_config["num-partitions"])
    mine = getattr(split_dataset(digits, "iid", clients, seed=0), part)[context.node_config["partition-id"]]
    split = getattr(digits, part).select(mine)
    return Split(interpolate(split.inputs, size=(32, 32)).expand(-1, 3, -1, -1), split.targets)


@client.train()
def train(message: Message, context: Context) -> Message:
    data, task = load(context), Task(message, context, build, seed_torch=True)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for rows in torch.randperm(len(data)).split(16):
        loss = cross_entropy(model(data.inputs[rows]), data.targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return task.reply(model, num_examples=len(data), metrics={"train-loss": loss.item()})


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    data, task = load(context, "test"), Task(message, context, build)
    model = task.model()
    with torch.inference_mode():
        right = model(data.inputs).argmax(1) == data.targets
    return task.reply(num_examples=len(data), metrics={"local-accuracy": right.float().mean().item()})


@server.main()
def main(grid: Grid, context: Context) -> None:
    strategy = HeteroFL(build, mix="a1-b1-c1-d1-e1", callbacks=[Console()])
    strategy.start(grid, num_rounds=int(context.run_config.get("num-rounds", 3)))


if __name__ == "__main__":
    with LocalGrid(client, num_nodes=10) as local:
        server(local, Context(local.run.run_id, 1, {}, RecordDict(), {}))
