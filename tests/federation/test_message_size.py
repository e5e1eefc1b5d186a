"""Messages carry the slice and little else: all objects that Flower would send, measured for each level."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.clientapp import ClientApp

from heterofl_flwr import HeteroFL, LocalGrid
from heterofl_flwr.client import answer_queries, reply, submodel
from heterofl_flwr.nn import build_model
from tests.flower_internals import get_all_nested_objects

LEVELS = (1.0, 0.5, 0.25, 0.125, 0.0625)


cnn = build_model("cnn", channels=1, classes=10)
preresnet = build_model("preresnet18", channels=3, classes=10)


def bytes_of(message: Message) -> int:
    """Return the bytes of a message's objects as Flower deflates them, each once."""
    return sum(len(own.deflate()) for own in get_all_nested_objects(message).values())


def instructions(build, upload="float32") -> dict[float, Message]:
    """Return one instruction to train for each level."""
    app = ClientApp()
    answer_queries(app, build)
    with LocalGrid(app, 5) as grid:
        strategy = HeteroFL(build, "a1-b1-c1-d1-e1", learning_rate=lambda server_round: 0.1, upload=upload)
        state = ArrayRecord(strategy.federation.initial_state())
        sent = strategy.configure_train(1, state, ConfigRecord({"epochs": 5}), grid)
    return {message.content["config"]["rate"]: message for message in sent}


@pytest.mark.parametrize(("upload", "width"), [("float32", 4), ("float16", 2), ("int8", 1)])
@pytest.mark.parametrize("build", [cnn, preresnet], ids=["cnn", "preresnet18"])
def test_messages_carry_only_the_slice(build, upload, width):
    sent = instructions(build, upload)
    assert sorted(sent, reverse=True) == list(LEVELS)
    with LocalGrid(ClientApp(), 1):
        for rate, message in sent.items():
            model = submodel(message, build)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter)
            tensors = list(model.parameters())
            entries = sum(tensor.numel() for tensor in tensors)
            scales = 4 * sum(len(tensor) if tensor.dim() > 1 else 1 for tensor in tensors) if upload == "int8" else 0
            more = 512 * len(tensors) + 2048
            # Flower sends equal arrays, such as all norms of one width at the start, once: so almost, not above.
            assert 0.99 * 4 * entries < bytes_of(message) <= 4.2 * entries + more, rate
            said = {"num_examples": 600, "metrics": {"train-loss": 1.25}, "capacity": "a"}
            size = bytes_of(reply(message, model, **said))
            assert width * entries + scales < size <= width * 1.05 * entries + scales + more, rate
