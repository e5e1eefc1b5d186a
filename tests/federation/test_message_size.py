"""Messages carry the slice and little else: all objects that Flower would send, measured for each level."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.clientapp import ClientApp
from torch import nn

from heterofl_flwr import HeteroFL, LocalGrid, messages, packing
from heterofl_flwr.client import answer_queries, reply, submodel
from heterofl_flwr.nn import build_model
from heterofl_flwr.nn.static_norm import collect_moments
from tests.flower_internals import get_all_nested_objects

LEVELS = (1.0, 0.5, 0.25, 0.125, 0.0625)


cnn = build_model("cnn", channels=1, classes=10)
preresnet = build_model("preresnet18", channels=3, classes=10)


def bytes_of(message: Message) -> int:
    """Return the bytes of a message's objects as Flower deflates them, each once."""
    return sum(len(own.deflate()) for own in get_all_nested_objects(message).values())


def limit(model: nn.Module) -> float:
    """Return four bytes a parameter and 5 %, 512 bytes a tensor, and 2 KB."""
    tensors = list(model.parameters())
    return 4 * 1.05 * sum(tensor.numel() for tensor in tensors) + 512 * len(tensors) + 2048


def instructions(build, upload="float32") -> dict[float, Message]:
    """Return one instruction to train for each level."""
    app = ClientApp()
    answer_queries(app, build)
    with LocalGrid(app, 5) as grid:
        strategy = HeteroFL(build, "a1-b1-c1-d1-e1", learning_rate=lambda server_round: 0.1, upload=upload)
        state = ArrayRecord(strategy.federation.initial_state())
        sent = strategy.configure_train(1, state, ConfigRecord({"epochs": 5}), grid)
    return {message.content["config"]["rate"]: message for message in sent}


@pytest.mark.parametrize("build", [cnn, preresnet], ids=["cnn", "preresnet18"])
def test_messages_to_and_from_clients_carry_only_the_slice(build):
    sent = instructions(build)
    assert sorted(sent, reverse=True) == list(LEVELS)
    with LocalGrid(ClientApp(), 1):
        for rate, message in sent.items():
            model = submodel(message, build)
            metrics = {"train-loss": 1.25, "train-accuracy": 0.5}
            answer = reply(message, model, num_examples=600, metrics=metrics, capacity="a")
            with_labels = reply(message, model, num_examples=600, metrics=metrics, capacity="a", labels=range(10))
            # Flower sends equal arrays, such as all norms of one width at the start, once: so almost, not above.
            least = 0.99 * 4 * sum(parameter.numel() for parameter in model.parameters())
            assert least < bytes_of(message) <= limit(model), rate
            assert least < bytes_of(answer) <= limit(model), rate
            labels = bytes_of(with_labels) - bytes_of(answer)
            assert 10 <= labels <= 32 + 2 * 10


@pytest.mark.parametrize(("upload", "width"), [("float16", 2), ("int8", 1)])
@pytest.mark.parametrize("build", [cnn, preresnet], ids=["cnn", "preresnet18"])
def test_changes_travel_in_two_bytes_or_in_one(build, upload, width):
    sent = instructions(build, upload)
    with LocalGrid(ClientApp(), 1):
        for rate, message in sent.items():
            model = submodel(message, build)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter)
            tensors = list(model.parameters())
            entries = width * sum(tensor.numel() for tensor in tensors)
            scales = 4 * sum(len(tensor) if tensor.dim() > 1 else 1 for tensor in tensors) if upload == "int8" else 0
            size = bytes_of(reply(message, model, num_examples=600))
            assert entries + scales < size <= entries + scales + 512 * len(tensors) + 2048, rate


def test_equal_slices_are_one_object():
    """Flower sends an object once, whoever it is for."""
    sent = list(instructions(cnn).values())
    again = list(instructions(cnn).values())
    for one, two in zip(sent, again, strict=True):
        assert one.content["arrays"].object_id == two.content["arrays"].object_id


@pytest.mark.parametrize("classes", [1_000, 33_278])
def test_label_lists_cost_a_few_bytes_a_label(classes):
    config = messages.new_config({messages.LABELS: list(range(classes))})
    assert len(config.deflate()) <= 3.1 * classes + 256


def test_moments_cost_two_doubles_a_channel():
    moments = collect_moments(cnn(1.0), [torch.randn(4, 1, 28, 28)])
    record = packing.pack_moments({1.0: moments})
    channels = sum(len(layer.first) for layer in moments.layers.values())
    assert channels == 64 + 128 + 256 + 512
    assert sum(len(array.data) for array in record.values()) <= 16 * channels + 3 * len(moments.layers) * 160
