"""HeteroFL for Flower's classic API: ``flwr.server.strategy.Strategy`` and ``NumPyClient``.

The strategy behaves as ``heterofl_flwr.HeteroFL`` does, over the same core. On the client, ``submodel`` and
``parameters_of`` stand around the user's own ``fit``; labels travel as text in ``metrics["labels"]``::

    class Client(NumPyClient):
        def get_properties(self, config):
            return properties_of(self.context, moments=True)

        def fit(self, parameters, config):
            if asks_for_moments(config):  # for models with batch norm
                return answer_moments(parameters, config, build, batches)
            model = submodel(parameters, config, build)
            ...
            return parameters_of(model), number, {"labels": labels_text(classes)}

        def evaluate(self, parameters, config):
            model = submodel(parameters, config, build)
            ...
            return loss, number, {"local-accuracy": accuracy}
"""

from heterofl_flwr.classic.client import (
    answer_moments,
    asks_for_moments,
    labels_text,
    models_to_evaluate,
    parameters_of,
    properties_of,
    submodel,
)
from heterofl_flwr.classic.strategy import HeteroFL

__all__ = [
    "HeteroFL",
    "answer_moments",
    "asks_for_moments",
    "labels_text",
    "models_to_evaluate",
    "parameters_of",
    "properties_of",
    "submodel",
]
