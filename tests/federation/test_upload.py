"""Replies in fewer bits: who asks, who answers how, what is refused, and that all else stays as it is."""

import pytest
import torch

from heterofl_flwr.client import reply, submodel
from tests.federation.tiny import build, inputs, make_app, play

FORMS = ("float16", "int8")


def run(app, nodes=2, num_rounds=1, mix="a1-c1", **options):
    found = play(app, mix, nodes, num_rounds, **options)
    return found.strategy, found.state


def descend(message, context, **said):
    """Train: one step on the node's own data, so that no two entries change alike."""
    model = submodel(message, build)
    model(inputs(context.node_config["partition-id"])).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    return reply(message, model, num_examples=1, **said)


def state_after(upload, train=descend, **options):
    return run(make_app(train), 4, upload=upload, **options)


@pytest.mark.parametrize("upload", FORMS)
def test_the_model_is_nearly_that_of_whole_replies(upload):
    _, exact = state_after("float32", num_rounds=3)
    strategy, found = state_after(upload, num_rounds=3)
    assert strategy.log.failures == {}
    start = strategy.federation.initial_state()
    for name, tensor in exact.items():
        change = tensor - start[name]
        assert 0 < (found[name] - tensor).norm() < change.norm() * {"float16": 1e-3, "int8": 3e-2}[upload], name


@pytest.mark.parametrize("upload", ["float32", *FORMS])
def test_bytes_are_those_that_travelled(upload):
    sizes = []

    def train(message, context):
        answer = descend(message, context)
        records = answer.content.array_records.values()
        sizes.append(sum(len(array.data) for record in records for array in record.values()))
        return answer

    strategy, _ = state_after(upload, train)
    assert strategy.log.bytes_up == sum(sizes)
