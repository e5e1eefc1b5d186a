"""Tied weights count once, travel once and are kept once; clients of unequal depth."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from safetensors.torch import load_file
from torch import nn

from heterofl_flwr import HeteroFL, Slicing, elastic, shallow
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import Mix, Plan, width
from heterofl_flwr.federation.capability import Capability
from heterofl_flwr.nn import build_model, with_exits
from heterofl_flwr.report import RunFolder, load_model
from heterofl_flwr.runs.models import save_models
from tests.core.twin import counting_mean, trained_reply
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
    task = Task(message, context, Words)
    model = task.model()
    assert model.decoder.weight is model.embedding.weight
    partition = context.node_config["partition-id"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1 + partition
    return task.reply(model, num_examples=1, labels=[partition, 3])


def play(mix="a1-c1", clients=2, num_rounds=1, arrays=None, app=train, **options):
    start = {"initial_arrays": arrays}
    found = tiny.play(make_app(app, build=Words), mix, clients, num_rounds, build=Words, start=start, **options)
    assert found.log.failures == {}
    return found.strategy, found.grid, found.state


@pytest.mark.parametrize("rows", [{}, ROWS, {"label_rows": ["embedding.weight", *ROWS["label_rows"]]}])
def test_the_mean_is_the_slow_twins_under_either_name(rows):
    strategy, _, state = play(clients=3, **rows)
    before = strategy.federation.architecture.initial_state()
    replies = []
    for partition, rate in strategy.log.rates.items():
        plan = Plan.of(Words(1.0), Words(rate))
        replies.append(trained_reply(plan, before, 1 + partition, [partition, 3]))
    assert strategy.federation.architecture.rows == ["embedding.weight", "decoder.bias"]
    means, _ = counting_mean(before, replies, strategy.federation.architecture.rows, classes=7)
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


@pytest.mark.parametrize("option", ["shared", "by_level"])
def test_patterns_that_match_a_tied_parameter_must_match_its_first_name(option):
    """With ``decoder.*`` alone, the decoder's bias was shared, and its weight stayed with each client."""
    with pytest.raises(ConfigError, match=rf"^{option} matches decoder\.weight, which is embedding\.weight"):
        HeteroFL(Words, "a1-c1", slicing=Slicing(**{option: ["decoder.*"]}))
    HeteroFL(Words, "a1-c1", slicing=Slicing(**{option: ["decoder.*", "embedding.weight"]}))


def test_final_models_have_them_once(tmp_path):
    folder = RunFolder(tmp_path)
    state = dict(Words(1.0).state_dict())
    save_models(folder, Words, [1.0, 0.5], state)
    assert set(load_file(folder.models / "b.safetensors")) == set(NAMES)
    model = load_model(folder, "b", Words)
    assert model.decoder.weight is model.embedding.weight
    torch.testing.assert_close(model.decoder.weight.detach(), state["decoder.weight"][:, :4])


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), nn.Linear(4, 4))


build = shallow(stack(), "1.*", torch.zeros(1, 3))


def run(build, mix, odd=None, **options):
    """Run a round with one client for each part of the mix; return the state before and after."""
    app, clients = tiny.make_app(build=build, odd=odd), sum(Mix.parse(mix).counts)
    found = tiny.play(app, mix, clients, build=build, labels="none", min_available_nodes=clients, **options)
    return found.before, found.state


def change(before, after, name):
    """Return by how much the entries of a parameter changed, each number once."""
    return sorted({round(own, 3) for own in (after[name] - before[name]).flatten().tolist()})


def test_a_block_changes_by_the_mean_over_those_who_have_it():
    before, after = run(build, "b1-c2")  # client 0 has two blocks, 1 and 2 have one; nobody has four
    assert list(before) == list(after)
    assert change(before, after, "1.0.weight") == change(before, after, "1.0.bias") == [2.0]
    assert change(before, after, "1.1.weight") == [1.0]
    assert "1.2.weight" not in after


def test_heads_that_a_client_does_not_train_do_not_count():
    exits = with_exits(build_model("cnn", classes=4, hidden=(4, 4), norm="gn"), deepest_only=True)
    with_depth = shallow(exits, "exits.*", None)
    federation = HeteroFL(with_depth, "a1-b1").federation
    assert federation.architecture.untrained(1.0) == {"exits.0.head.linear.weight", "exits.0.head.linear.bias"}
    assert federation.architecture.untrained(0.5) == set()
    federation.register({node: Capability(partition=node) for node in (0, 1)})
    counts = federation.levels.count_holders(1, federation.architecture.initial_state())("exits.0.head.linear.bias")
    assert counts.unique().tolist() == [1]  # of those who train it, as in the mean
    before, after = run(with_depth, "a1-b1")
    assert change(before, after, "exits.0.head.linear.bias") == [2.0]  # client 1's alone
    assert change(before, after, "exits.1.head.linear.bias") == [1.0]
    assert change(before, after, "exits.0.body.conv.bias") == [1.5]


@pytest.mark.parametrize(("options", "warns"), [({}, True), ({"global_rate": 0.5}, False), ({"scaler": False}, False)])
def test_scalers_for_another_largest_rate_than_that_of_the_mix_are_warned_of(caplog, options, warns):
    layers = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    build, inputs = elastic(layers, torch.zeros(1, 3), **options), torch.ones(1, 3)
    largest = HeteroFL(build, "b1-c1").federation.architecture.model
    assert torch.equal(largest.train()(inputs), largest.eval()(inputs)) != warns
    assert ("expected elastic(..., global_rate=0.5)" in caplog.text) == warns


def test_untrained_heads_are_known_inside_another_module_too():
    exits = with_exits(build_model("cnn", classes=4, hidden=(4, 4), norm="gn"), deepest_only=True)
    wrapped = shallow(lambda rate: nn.Sequential(exits(rate)), "0.exits.*", None)
    architecture = HeteroFL(wrapped, "a1-b1").federation.architecture
    assert not architecture.trains_all
    assert architecture.untrained(1.0) == {"0.exits.0.head.linear.weight", "0.exits.0.head.linear.bias"}
    assert architecture.untrained(0.5) == set()


@pytest.mark.parametrize("patterns", ["0.*", ("0",)])
def test_untrained_without_effect_is_refused(patterns):
    def build(rate):
        model = nn.Sequential(nn.Linear(3, 5))
        model.untrained = patterns
        return model

    with pytest.raises(ConfigError, match="untrained, the model's tuple of patterns: no parameter matches"):
        HeteroFL(build, "a1-b1")
