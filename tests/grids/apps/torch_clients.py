"""A ClientApp that trains with torch, with sums long enough to depend on the number of threads."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    draw = torch.Generator().manual_seed(context.node_config["partition-id"])
    inputs, targets = torch.randn(64, 50_000, generator=draw), torch.randn(64, 1, generator=draw)
    weights = message.content["arrays"].to_torch_state_dict()["w"].requires_grad_()
    for _ in range(3):
        loss = ((inputs @ weights - targets) ** 2).mean()
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - 1e-4 * gradient).detach().requires_grad_()
    metrics = MetricRecord({"num-examples": 1 + context.node_config["partition-id"], "loss": loss.item()})
    return Message(RecordDict({"arrays": ArrayRecord({"w": weights}), "metrics": metrics}), reply_to=message)


@app.query("threads")
def threads(message, context):
    return Message(RecordDict({"config": ConfigRecord({"threads": torch.get_num_threads()})}), reply_to=message)
