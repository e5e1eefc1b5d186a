"""The sample app of the Message API as a ``NumPyClient``, and a server for it."""

import torch
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Context
from flwr.server import ServerAppComponents, ServerConfig
from flwr.serverapp import ServerApp

from heterofl_flwr.classic import (
    HeteroFL,
    answer_moments,
    asks_for_moments,
    labels_text,
    models_to_evaluate,
    parameters_of,
    properties_of,
    submodel,
)
from heterofl_flwr.nn import class_mask, masked_cross_entropy
from tests.federation.digits_app import build, shard


class Client(NumPyClient):
    def __init__(self, context: Context):
        self.own = context

    def get_properties(self, config):
        return properties_of(self.own, moments=True)

    def fit(self, parameters, config):
        images, targets = shard(self.own)
        if asks_for_moments(config):
            return answer_moments(parameters, config, build, lambda: [images])
        model = submodel(parameters, config, build, seed_torch=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        mask = class_mask(targets.unique(), 10)
        for _ in range(3):
            for batch in torch.randperm(len(targets)).split(10):
                optimizer.zero_grad()
                loss = masked_cross_entropy(model(images[batch]), targets[batch], mask)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        return parameters_of(model), len(targets), {"labels": labels_text(targets), "train-loss": loss.item()}

    def evaluate(self, parameters, config):
        images, targets = shard(self.own)
        metrics = {}
        for rate, model in models_to_evaluate(parameters, config, build):
            with torch.inference_mode():
                metrics[f"accuracy/{rate}"] = (model(images).argmax(1) == targets).float().mean().item()
        accuracy = next(iter(metrics.values()))
        return 1 - accuracy, len(targets), {**metrics, "local-accuracy": accuracy}


def client_fn(context: Context):
    return Client(context).to_client()


app = ClientApp(client_fn=client_fn)


def make_server(strategy: HeteroFL, num_rounds: int) -> ServerApp:
    """Return Flower's own server around a strategy."""
    config = ServerConfig(num_rounds=num_rounds)
    return ServerApp(server_fn=lambda context: ServerAppComponents(strategy=strategy, config=config))
