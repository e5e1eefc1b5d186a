"""A NumPyClient around a plain training loop."""

import torch
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits

from heterofl_flwr.classic import labels_text, parameters_of, properties_of, submodel
from heterofl_flwr.nn import CNN

PER_CLIENT = 200


def build(rate):
    return CNN(channels=1, classes=10, hidden=(16, 32), rate=rate)


def digits():
    images, targets = map(torch.from_numpy, load_digits(return_X_y=True))
    return (images.float().view(-1, 1, 8, 8) - 4.88) / 6.02, targets


class Client(NumPyClient):
    def __init__(self, context):
        self.own = context
        first = context.node_config["partition-id"] * PER_CLIENT
        self.images, self.targets = (tensor[first : first + PER_CLIENT] for tensor in digits())

    def get_properties(self, config):
        return properties_of(self.own)

    def fit(self, parameters, config):
        model = submodel(parameters, config, build, seed_torch=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for batch in torch.cat([torch.randperm(len(self.targets)) for _ in range(3)]).split(10):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(self.images[batch]), self.targets[batch]).backward()
            optimizer.step()
        metrics = {"labels": labels_text(self.targets.tolist()), "rate": config["rate"]}
        return parameters_of(model), len(self.targets), metrics

    def evaluate(self, parameters, config):
        model = submodel(parameters, config, build).eval()
        with torch.inference_mode():
            right = (model(self.images).argmax(1) == self.targets).sum().item()
        accuracy = right / len(self.targets)
        return 1 - accuracy, len(self.targets), {"local-accuracy": accuracy}


def client_fn(context):
    return Client(context).to_client()


app = ClientApp(client_fn=client_fn)
