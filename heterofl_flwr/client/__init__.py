"""The client's side of a Flower app: one call of ``answer_queries``, and a ``Task`` for each message.

::

    answer_queries(app, build, data=load)      # once: answers queries about level, stages and batch norm

    @app.train()
    def train(message, context):
        task = Task(message, context, build)
        model = task.model()                   # the user's model at this message's rate, loaded
        ...                                    # the user's own loop, with a new optimizer
        return task.reply(model, num_examples=n, labels=classes, metrics={"train-loss": loss})
"""

from heterofl_flwr.client.instruction import Instruction
from heterofl_flwr.client.node_config import partition_of
from heterofl_flwr.client.queries import answer_queries
from heterofl_flwr.client.task import Task

__all__ = ["Instruction", "Task", "answer_queries", "partition_of"]
