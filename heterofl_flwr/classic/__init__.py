"""HeteroFL for Flower's classic API: ``flwr.server.strategy.Strategy`` and ``NumPyClient``.

On the client, make a ``Task`` in ``fit`` and ``evaluate``::

    class Client(NumPyClient):
        def get_properties(self, config):
            return properties_of(self.context, moments=True)

        def fit(self, parameters, config):
            task = Task(parameters, config, self.context, build)
            if task.asks_for_moments:  # for models with batch norm
                return task.moments(batches)
            model = task.model()
            ...
            return task.reply(model, num_examples=n, labels=classes)

        def evaluate(self, parameters, config):
            model = Task(parameters, config, self.context, build).model()
            ...
            return loss, n, {"local-accuracy": accuracy}
"""

from heterofl_flwr.classic.strategy import HeteroFL
from heterofl_flwr.classic.task import Task, parameters_of, properties_of

__all__ = ["HeteroFL", "Task", "parameters_of", "properties_of"]
