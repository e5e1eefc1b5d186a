"""What a client process does in Flower's default isolation: it starts, answers one message to train, and ends."""

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict

from heterofl_flwr import messages as wire
from heterofl_flwr.app.client_app import app
from heterofl_flwr.app.task import load_task
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.core.plan import Plan
from heterofl_flwr.grids.apps import Identity


def main(folder: str, level: str) -> None:
    """Train a level of the MNIST model on a folder of images."""
    config: dict[str, bool | int | float | str] = {"data.name": "mnist", "mix": f"a1-{level}1", "train.epochs": 1}
    node: dict[str, bool | int | float | str] = {"data-path": folder, "level": level}
    context = Context(1, 1, node, RecordDict(), dict(config))
    build, rate = load_task(config).build, rate_of(level)
    state = Plan.of(build(1.0), build(rate)).extract(dict(build(1.0).named_parameters()))
    sent = {wire.RATE: rate, wire.GLOBAL_RATE: 1.0, wire.SERVER_ROUND: 1, wire.SEED: 0, wire.PARTITION: 0}
    sent[wire.LEARNING_RATE] = 0.01
    Identity(1)
    content = RecordDict({wire.ARRAYS: ArrayRecord(state), wire.CONFIG: wire.new_config(sent)})
    reply = app(Message(content, 2, MessageType.TRAIN), context)
    if reply.has_error():
        raise RuntimeError(reply.error.reason)
