"""What a client process does in Flower's default isolation: it starts, answers one message to train, and ends."""

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict

from heterofl_flwr import Plan
from heterofl_flwr.app.client_app import app
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.transport import messages
from heterofl_flwr.transport.compat import ensure_identity


def main(folder: str, level: str) -> None:
    """Train a level of the MNIST model on a folder of images."""
    config: dict[str, bool | int | float | str] = {"data.name": "mnist", "mix": f"a1-{level}1", "train.epochs": 1}
    node: dict[str, bool | int | float | str] = {"data-path": folder, "level": level}
    context = Context(1, 1, node, RecordDict(), dict(config))
    build, rate = load_workload(config).build, rate_of(level)
    state = Plan.of(build(1.0), build(rate)).extract(dict(build(1.0).named_parameters()))
    sent = dict.fromkeys((messages.SEED, messages.PARTITION), 0) | {messages.RATE: rate, messages.GLOBAL_RATE: 1.0}
    sent |= {messages.SERVER_ROUND: 1, messages.LEARNING_RATE: 0.01}
    ensure_identity()
    content = RecordDict({messages.ARRAYS: ArrayRecord(state), messages.CONFIG: messages.new_config(sent)})
    reply = app(Message(content, 2, MessageType.TRAIN), context)
    if reply.has_error():
        raise RuntimeError(reply.error.reason)


def write_images(folder: Path, number: int) -> None:
    """Write grey images of noise, all classes alike often, to train and to test."""
    from PIL import Image  # which a client without images does not have

    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for row in range(number):
            path = folder / part / str(row % 10) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
