"""The sample app of the Message API as a ``NumPyClient``, and a server for it."""

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
from tests.federation.digits_app import PER_CLIENT, accuracies, build, fit, shard


class Client(NumPyClient):
    def __init__(self, context: Context):
        self.own = context

    def get_properties(self, config):
        return properties_of(self.own, moments=True)

    def fit(self, parameters, config):
        if asks_for_moments(config):
            return answer_moments(parameters, config, build, lambda: [shard(self.own)[0]])
        model = submodel(parameters, config, build, seed_torch=True)
        targets, loss = fit(model, self.own)
        return parameters_of(model), len(targets), {"labels": labels_text(targets), "train-loss": loss}

    def evaluate(self, parameters, config):
        metrics = accuracies(models_to_evaluate(parameters, config, build), self.own)
        return 1 - metrics["local-accuracy"], PER_CLIENT, metrics


class Kept(HeteroFL):
    """The strategy, which keeps what the server got last."""

    def aggregate_fit(self, server_round, results, failures):
        self.last, metrics = super().aggregate_fit(server_round, results, failures)
        return self.last, metrics

    def aggregate_evaluate(self, server_round, results, failures):
        self.loss, self.metrics = super().aggregate_evaluate(server_round, results, failures)
        return self.loss, self.metrics


def client_fn(context: Context):
    return Client(context).to_client()


app = ClientApp(client_fn=client_fn)


def make_server(strategy: HeteroFL, num_rounds: int) -> ServerApp:
    """Return Flower's own server around a strategy."""
    config = ServerConfig(num_rounds=num_rounds)
    return ServerApp(server_fn=lambda context: ServerAppComponents(strategy=strategy, config=config))
