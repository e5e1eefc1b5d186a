"""What travels: the slice and little else; replies in fewer bits; models that are themselves in fewer bits."""

from dataclasses import replace

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.clientapp import ClientApp
from torch import nn

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, Training
from heterofl_flwr.client import Task, answer_queries
from heterofl_flwr.client.state import load_tensors
from heterofl_flwr.nn import build_model
from heterofl_flwr.strategies import start
from simulations.flower_internals import get_all_nested_objects
from tests.client.test_client import trained
from tests.federation.tiny import Tiny, build, make_app, node_context, play

FORMS = ("float16", "int8")


def descend(message, context, **said):
    task = Task(message, context, build)
    return task.reply(trained(task, context.node_config["partition-id"]), num_examples=1, **said)


def play_with(upload, train=descend, **options):
    return play(make_app(train), "a1-c1", 4, upload=upload, **options)


@pytest.mark.parametrize("upload", FORMS)
def test_the_model_is_nearly_that_of_whole_replies(upload):
    exact, found = play_with("float32", num_rounds=3).state, play_with(upload, num_rounds=3)
    assert found.log.failures == {}
    start = found.strategy.federation.architecture.initial_state()
    for name, tensor in exact.items():
        change = tensor - start[name]
        assert 0 < (found.state[name] - tensor).norm() < change.norm() * {"float16": 1e-3, "int8": 3e-2}[upload], name


@pytest.mark.parametrize("upload", ["float32", *FORMS])
def test_bytes_are_those_that_travelled(upload):
    sizes = []

    def train(message, context):
        answer = descend(message, context)
        records = answer.content.array_records.values()
        sizes.append(sum(len(array.data) for record in records for array in record.values()))
        return answer

    assert play_with(upload, train).log.bytes_up == sum(sizes)


def test_a_reply_in_double_precision_is_not_too_large_for_a_superlink():
    """SecAgg+ replies so; a masked change takes four bytes an entry, also that of a model in float16."""
    found = play(nodes=2)
    largest = found.strategy.largest_reply(found.grid.of("train")[0])
    assert largest == 8 * 68 + 4 * start.NAME_BYTES + start.OTHER_BYTES


SHARED = {"shared": ["hidden.*", "norm.*"]}


def in_bfloat16(rate: float) -> nn.Module:
    """Return a model in bfloat16, but for one layer; numpy does not know this type."""
    model = Tiny(rate, norm=True).bfloat16()
    model.hidden.float()
    model.hidden.register_forward_hook(lambda layer, args, output: output.bfloat16())
    return model


def set_all(message, context):
    """Train: set every parameter to a number that bfloat16 holds, another for each partition."""
    partition, task = context.node_config["partition-id"], Task(message, context, in_bfloat16)
    model = task.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_((1 + partition) / 8)
    answer = task.reply(model, num_examples=1)
    saved = load_tensors(context, replace(task.instruction, kind="evaluate")) or {}
    assert {tensor.dtype for tensor in saved.values()} <= {torch.float32}
    return answer


@pytest.mark.parametrize("options", [{"upload": "float32"}, {"upload": "int8"}, SHARED], ids=str)
def test_bfloat16_is_exchanged_in_float32(options):
    app, options = make_app(set_all, build=in_bfloat16), {"evaluation": Evaluation(levels=True), **options}
    found = play(app, "a1-c1", 4, 2, build=in_bfloat16, **options)
    assert found.log.failures == found.log.evaluate_failures == {}
    assert {tensor.dtype for tensor in found.state.values()} == {torch.float32}
    # Partitions 0 and 1 hold the whole, which 2 and 3 train a quarter of.
    rounding = 1e-2 if "upload" in options else 0.0
    torch.testing.assert_close(found.state["hidden.bias"][:2], torch.full((2,), 2.5 / 8), rtol=0, atol=rounding)
    torch.testing.assert_close(found.state["norm.bias"][2:], torch.full((6,), 1.5 / 8), rtol=0, atol=rounding)


cnn = build_model("cnn", channels=1, classes=10)


def bytes_of(message: Message) -> int:
    """Return the bytes of a message's objects as Flower deflates them, each once."""
    return sum(len(own.deflate()) for own in get_all_nested_objects(message).values())


def instructions(upload) -> dict[float, Message]:
    """Return one instruction to train for each level."""
    app = ClientApp()
    answer_queries(app, cnn)
    with LocalGrid(app, 2) as grid:
        strategy = HeteroFL(cnn, "a1-e1", training=Training(learning_rate=lambda server_round: 0.1, upload=upload))
        state = ArrayRecord(strategy.federation.architecture.initial_state())
        sent = strategy.configure_train(1, state, ConfigRecord({"epochs": 5}), grid)
    return {message.content["config"]["rate"]: message for message in sent}


@pytest.mark.parametrize(("upload", "width"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_messages_carry_only_the_slice(upload, width):
    sent = instructions(upload)
    assert list(sent) == [1.0, 0.0625]
    with LocalGrid(ClientApp(), 1):
        for rate, message in sent.items():
            task = Task(message, node_context(), cnn)
            model = task.model()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter)
            tensors = list(model.parameters())
            entries = sum(tensor.numel() for tensor in tensors)
            scales = 4 * sum(len(tensor) if tensor.dim() > 1 else 1 for tensor in tensors) if upload == "int8" else 0
            more = 512 * len(tensors) + 2048
            # Flower sends equal arrays, such as all norms of one width at the start, once: so almost, not above.
            assert 0.99 * 4 * entries < bytes_of(message) <= 4.2 * entries + more, rate
            said = {"num_examples": 600, "metrics": {"train-loss": 1.25}, "capacity": "a"}
            size = bytes_of(task.reply(model, **said))
            assert width * entries + scales < size <= width * 1.05 * entries + scales + more, rate
