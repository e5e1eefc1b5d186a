"""A text classifier in a Flower app: an LSTM that clients of five sizes train together.

``python -m simulations.examples.text_app`` runs it on this machine in some seconds. The texts are docstrings of three
modules of Python's library. The model classifies 24 consecutive words by the module that they come from.
"""

import argparse
import decimal
import inspect
import logging
import re
import statistics
from types import ModuleType

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from heterofl_flwr import HeteroFL, LocalGrid, elastic
from heterofl_flwr.client import Task, answer_queries
from heterofl_flwr.report import Console

LENGTH = 24


def words_of(module: ModuleType) -> list[str]:
    """Return the words in the docstrings of a module's functions, classes and methods."""
    owners = [module, *(one for one in vars(module).values() if inspect.isclass(one))]
    docs = {inspect.getdoc(one) or "" for owner in owners for one in vars(owner).values() if callable(one)}
    return re.findall("[a-z]+", " ".join(sorted(docs)).lower())


TEXTS = [words_of(module)[:3000] for module in (decimal, logging, statistics)]
WORDS = {word: number for number, word in enumerate(sorted({word for text in TEXTS for word in text}))}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, len(TEXTS))

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.lstm(self.words(words))
        logits: Tensor = self.head(states.amax(1))
        return logits


build = elastic(Classifier(), torch.zeros(1, LENGTH, dtype=torch.int64))  # the only line that makes models unequal
client, server = ClientApp(), ServerApp()


def load(context: Context, *, test: bool = False) -> tuple[Tensor, Tensor]:
    """Return this client's rows of words and their labels; every fifth row is for tests."""
    rows = [torch.tensor([WORDS[word] for word in text]).unfold(0, LENGTH, LENGTH) for text in TEXTS]
    labels = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(own) for own in rows]))
    part = torch.arange(len(labels))[(torch.arange(len(labels)) % 5 == 0) == test]
    mine = part[int(context.node_config["partition-id"]) :: int(context.node_config["num-partitions"])]
    return torch.cat(rows)[mine], labels[mine]


answer_queries(client, build)  # without data, because a model without batch norm needs no moments


@client.train()
def train(message: Message, context: Context) -> Message:
    rows, labels = load(context)
    task = Task(message, context, build, seed_torch=True)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in torch.randperm(len(rows)).repeat(5).split(8):
        optimizer.zero_grad()
        loss = cross_entropy(model(rows[batch]), labels[batch])
        loss.backward()
        optimizer.step()
    return task.reply(model, num_examples=len(rows), metrics={"train-loss": loss.item()})


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    rows, labels = load(context, test=True)
    task = Task(message, context, build)
    with torch.inference_mode():
        right = task.model()(rows).argmax(1) == labels
    return task.reply(num_examples=len(rows), metrics={"local-accuracy": right.float().mean().item()})


@server.main()
def main(grid: Grid, context: Context) -> None:
    rounds = int(context.run_config.get("num-rounds", 5))
    HeteroFL(build, mix="a1-b1-c1-d1-e1", callbacks=[Console()]).start(grid, num_rounds=rounds)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    with LocalGrid(client, num_nodes=5) as local:
        server(local, Context(local.run.run_id, 1, {}, RecordDict(), {}))
