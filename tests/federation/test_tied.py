"""Tied weights count once, travel once and are kept once, under the first of their names."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from safetensors.torch import load_file
from torch import nn

from heterofl_flwr.client import reply, submodel
from heterofl_flwr.core import Plan, width
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.models import load_model, save_models
from tests.core.twin import Reply, counting_mean, held
from tests.federation import tiny
from tests.federation.tiny import make_app

NAMES = ["embedding.weight", "hidden.weight", "hidden.bias", "decoder.bias"]
ROWS = {"label_rows": ["decoder.weight", "decoder.bias"]}


class Words(nn.Module):
    """A language model of seven words whose decoder is its embedding."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        size = width(8, rate)
        self.embedding = nn.Embedding(7, size)
        self.hidden = nn.Linear(size, size)
        self.decoder = nn.Linear(size, 7)
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(torch.relu(self.hidden(self.embedding(x))))


def train(message, context):
    model = submodel(message, Words)
    assert model.decoder.weight is model.embedding.weight
    partition = context.node_config["partition-id"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1 + partition
    return reply(message, model, num_examples=1, labels=[partition, 3])


def play(mix="a1-c1", clients=2, num_rounds=1, arrays=None, app=train, **options):
    start = {"initial_arrays": arrays}
    found = tiny.play(make_app(app, build=Words), mix, clients, num_rounds, build=Words, start=start, **options)
    assert found.log.failures == {}
    return found.strategy, found.grid, found.state


def numbers(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_they_travel_once():
    strategy, grid, state = play()
    assert all(list(message.content["arrays"]) == NAMES for message in grid.of("train"))
    assert list(state) == NAMES
    header = 128  # of each array, as numpy writes it
    expected = 4 * (numbers(Words(1.0)) + numbers(Words(0.25))) + 2 * len(NAMES) * header
    assert strategy.log.bytes_down == strategy.log.bytes_up == expected
    assert strategy.federation.plan(0.25).parameters == numbers(Words(0.25))


@pytest.mark.parametrize("rows", [{}, ROWS, {"label_rows": ["embedding.weight", *ROWS["label_rows"]]}])
def test_the_mean_is_the_slow_twins_under_either_name(rows):
    strategy, _, state = play(clients=3, **rows)
    before = strategy.federation.initial_state()
    replies = []
    for partition, rate in strategy.log.rates.items():
        plan = Plan.of(Words(1.0), Words(rate))
        values = {name: own + 1 + partition for name, own in plan.extract(before).items()}
        replies.append(Reply({name: held(axes) for name, axes in plan.axes.items()}, values, [partition, 3]))
    assert strategy.federation.rows == ["embedding.weight", "decoder.bias"]
    means, _ = counting_mean(before, replies, strategy.federation.rows, classes=7)
    for name, tensor in state.items():
        np.testing.assert_allclose(tensor.numpy(), means[name], atol=1e-6)


def test_of_both_names_in_a_state_the_last_value_counts():
    """As in a ``state_dict``, and in a checkpoint of a version that averaged tied parameters apart."""
    state = {name: torch.full_like(own, number) for number, (name, own) in enumerate(Words(1.0).state_dict().items())}
    assert list(state) != NAMES
    _, grid, found = play("a1", arrays=ArrayRecord(state), labels="none")
    last = list(state).index("decoder.weight")
    assert all(list(message.content["arrays"]) == NAMES for message in grid.of("train"))
    torch.testing.assert_close(found["embedding.weight"], torch.full((7, 8), last + 1.5))


def test_final_models_have_them_once(tmp_path):
    folder = RunFolder(tmp_path)
    state = dict(Words(1.0).state_dict())
    save_models(folder, Words, [1.0, 0.5], state)
    assert set(load_file(folder.models / "b.safetensors")) == set(NAMES)
    model = load_model(folder, "b", Words)
    assert model.decoder.weight is model.embedding.weight
    torch.testing.assert_close(model.decoder.weight.detach(), state["decoder.weight"][:, :4])
