"""What travels: the slice and little else; replies in fewer bits; models that are themselves in fewer bits."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from heterofl_flwr import Evaluation
from heterofl_flwr.client import Task
from heterofl_flwr.client.state import load_tensors
from heterofl_flwr.strategies import start
from tests.client.test_client import trained
from tests.federation.tiny import Tiny, build, make_app, play

FORMS = ("float16", "int8")


def descend(message, context):
    task = Task(message, context, build)
    return task.reply(trained(task, context.node_config["partition-id"]), num_examples=1)


def play_with(upload, train=descend, **options):
    return play(make_app(train), "a1-c1", 4, upload=upload, **options)


@pytest.mark.parametrize("upload", FORMS)
def test_the_model_is_nearly_that_of_whole_replies(upload):
    exact, found = play_with("float32", num_rounds=3).state, play_with(upload, num_rounds=3)
    assert found.log.failures == {}
    start = found.before
    for name, tensor in exact.items():
        change = tensor - start[name]
        assert 0 < (found.state[name] - tensor).norm() < change.norm() * {"float16": 1e-3, "int8": 3e-2}[upload], name


@pytest.mark.parametrize(("upload", "width"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_replies_carry_the_slice_in_as_many_bytes_as_its_form_has(upload, width):
    sizes, entries = [], []

    def train(message, context):
        answer = descend(message, context)
        arrays, *scales = answer.content.array_records.values()
        sizes.extend(len(array.data) for record in (arrays, *scales) for array in record.values())
        entries.append(sum(array.numpy().nbytes for array in arrays.values()) / width)
        return answer

    assert play_with(upload, train).log.bytes_up == sum(sizes)
    assert sorted(entries) == [3 * 2 + 2 + 2 * 4 + 4] * 2 + [3 * 8 + 8 + 8 * 4 + 4] * 2


def test_a_reply_in_double_precision_is_not_too_large_for_a_superlink():
    """SecAgg+ replies so; a masked change takes four bytes an entry, also that of a model in float16."""
    found = play(nodes=2)
    largest = found.strategy.largest_reply(found.grid.of("train")[0])
    assert largest == 8 * 68 + 4 * start.NAME_BYTES + start.OTHER_BYTES


SHARED = {"shared": ["hidden.*", "norm.*"]}


def narrow(dtype: torch.dtype, rate: float) -> nn.Module:
    """Return a model in ``dtype``, but for one layer; numpy does not know bfloat16."""
    model = Tiny(rate, norm=True).to(dtype)
    model.hidden.float()
    model.hidden.register_forward_hook(lambda layer, args, output: output.to(dtype))
    return model


def set_all(build, message, context):
    """Train: set every parameter to a number that bfloat16 holds, another for each partition."""
    partition, task = context.node_config["partition-id"], Task(message, context, build)
    model = task.model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_((1 + partition) / 8)
    answer = task.reply(model, num_examples=1)
    saved = load_tensors(context, replace(task.instruction, kind="evaluate")) or {}
    assert {tensor.dtype for tensor in saved.values()} <= {torch.float32}
    return answer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{"upload": "float32"}, {"upload": "int8"}, SHARED], ids=str)
def test_narrow_types_are_exchanged_in_float32(options, dtype):
    build = partial(narrow, dtype)
    app, options = make_app(partial(set_all, build), build=build), {"evaluation": Evaluation(levels=True), **options}
    found = play(app, "a1-c1", 4, 2, build=build, **options)
    assert found.log.failures == found.log.evaluate_failures == {}
    assert {tensor.dtype for tensor in found.state.values()} == {torch.float32}
    # Partitions 0 and 1 hold the whole, which 2 and 3 train a quarter of.
    rounding = 1e-2 if "upload" in options else 0.0
    torch.testing.assert_close(found.state["hidden.bias"][:2], torch.full((2,), 2.5 / 8), rtol=0, atol=rounding)
    torch.testing.assert_close(found.state["norm.bias"][2:], torch.full((6,), 1.5 / 8), rtol=0, atol=rounding)
