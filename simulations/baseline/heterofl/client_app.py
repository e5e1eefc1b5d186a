"""heterofl: A Flower Baseline."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from heterofl_flwr.client import Task, answer_queries

from heterofl.dataset import load_data
from heterofl.model import model_builder
from heterofl.utils import test as test_fn
from heterofl.utils import train as train_fn

# Flower ClientApp
app = ClientApp()


def load(context: Context):
    """Return this client's train and test images with their labels."""
    config, node = context.run_config, context.node_config
    data = str(config["dataset"]), bool(config["non-iid"])
    return load_data(data, int(node["num-partitions"]), int(node["partition-id"]))


def build_from(context: Context):
    """Return the function from a rate to the model."""
    return model_builder(context.run_config["mix"])


def moments_batches(context: Context):
    """Return the batches on which static batch norm is measured."""
    return load(context)[0][0].split(int(context.run_config["batch-size"]))


# The server asks what a client can hold and, before an evaluation, for the moments
answer_queries(app, build_from=build_from, data=moments_batches)


@app.train()
def train(msg: Message, context: Context):
    """Train the slice of the model that the message brings."""
    task = Task(msg, context, build_from(context), seed_torch=True)
    model = task.model()
    data, _ = load(context)
    config = context.run_config
    loss = train_fn(
        model,
        data,
        lr=msg.content["config"]["lr"],
        epochs=int(config["local-epochs"]),
        batch_size=int(config["batch-size"]),
    )
    labels = data[1].unique().tolist()  # rows of the classifier count for these
    metrics = {"train_loss": loss}
    return task.reply(model, num_examples=len(data[1]), labels=labels, metrics=metrics)


@app.evaluate()
def evaluate(msg: Message, context: Context):
    """Evaluate the global model on this client's part of the test images."""
    task = Task(msg, context, build_from(context))
    model = task.model()
    _, data = load(context)
    accuracy = test_fn(model, data)
    return task.reply(num_examples=len(data[1]), metrics={"accuracy": accuracy})
