"""What the strategies share: plans by rate, rows that count, and models of odd shapes."""

import re
from collections import Counter

import pytest
import torch
from torch import nn

from heterofl_flwr import HeteroFL, Momentum, Slicing
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import width
from heterofl_flwr.core.counting_mean import held_by
from heterofl_flwr.core.exchanged import exclude_parameters
from heterofl_flwr.federation import global_model
from heterofl_flwr.federation.capability import Capability
from tests.federation.tiny import adding, build, make_app, play


class Odd(nn.Module):
    """A scalar, a parameter that is frozen, one that no layer has, one without entries, and one that is shared."""

    def __init__(self, rate):
        super().__init__()
        hidden = width(8, rate)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.zeros(0))
        self.one = nn.Linear(3, hidden)
        self.two = nn.Linear(hidden, 3, bias=False)
        self.two.weight.requires_grad_(False)
        self.again = self.one

    def forward(self, x):
        return self.two(self.again(x)) / self.temperature


def test_parameters_of_odd_shapes_travel_and_count():
    app = make_app(adding(lambda partition: 1, build=Odd))
    found = play(app, "a1-c1", 3, 2, build=Odd, stages=[Momentum(server_momentum=0.5)])
    before = found.before
    assert found.log.failures == {}
    assert list(found.state) == list(before)
    for name, tensor in found.state.items():
        torch.testing.assert_close(tensor, before[name] + 2.5)
    assert "again.weight" not in before  # it is one.weight


def test_a_classifier_that_stays_has_no_rows_that_count():
    def frozen(rate):
        model = build(rate)
        exclude_parameters(model, ["classifier.weight", "classifier.bias"])
        return model

    found = play(make_app(adding(labels=lambda partition: [1], build=frozen), build=frozen), build=frozen)
    assert found.log.failures == {}
    assert found.architecture.rows == []


def test_a_rate_without_a_model_is_the_clients_fault(caplog):
    def some(rate):
        if rate not in (1.0, 0.25):
            raise ValueError(f"no model of {rate}")
        return build(rate)

    def train(message, context):
        capacity = 0.4 if context.node_config["partition-id"] == 1 else None
        return (task := Task(message, context, some)).reply(task.model(), num_examples=1, capacity=capacity)

    node_config = [{"rate": 0.3}, {}, {}].__getitem__
    found = play(make_app(train), "a1-c1", 3, 2, build=some, node_config=node_config, label_rows=())
    assert found.log.rates == {0: 0.25, 1: 0.25, 2: 0.25}
    remedy = (
        "its argument is a rate, which scales the widths, as in heterofl_flwr.core.width(64, rate), or width(64, rate, "
        "heads) where heads or groups divide it"
    )
    fault = f"the capacity it reports is not usable: build(0.4) fails (ValueError: no model of 0.4): {remedy}"
    assert found.log.failures == {1: fault}
    unusable = r"not usable: build\(0.3\) fails \(ValueError: no model of 0.3\)"
    expected = rf"1 of 3 new nodes .* smallest rate, 0.25: partition 0: .* {unusable}"
    assert re.search(expected, caplog.text)
    dynamic = play(make_app(build=some), "a1-c1", 3, build=some, node_config=node_config, assignment="dynamic")
    assert dynamic.log.rates[0] == 0.25


def test_nodes_that_name_ever_new_rates_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(global_model, "CACHED_RATES", 4)
    model = HeteroFL(build, "a1").federation.architecture
    for number in range(1, 21):
        model.plan(number / 20)
    assert model.plan.cache_info().currsize == 4


@pytest.mark.parametrize("rule", ["prefix", "rolling", "random-client"])
def test_clients_are_counted_once_for_the_holders_of_all_parameters(rule, monkeypatch):
    federation = HeteroFL(build, "a1-c1", slicing=Slicing(slice_rule=rule)).federation
    federation.register({node_id: Capability(partition=node_id) for node_id in range(5)})
    state, levels, asked = federation.architecture.initial_state(), federation.levels, []
    plans = [federation.architecture.train_plan(7, levels.rate(7, node_id), node_id) for node_id in range(5)]
    rate = levels.rate
    monkeypatch.setattr(levels, "rate", lambda *args: asked.append(args) or rate(*args))
    count = levels.count_holders(7, state)
    assert asked == []
    for name, tensor in state.items():
        assert torch.equal(count(name), held_by(tensor, Counter(plan.axes[name] for plan in plans)))
    assert asked == [(7, node_id) for node_id in range(5)]


def test_a_model_whose_widths_ignore_the_rate_is_warned_of(caplog):
    HeteroFL(build, "a1-c1").summary()
    HeteroFL(lambda rate: build(1.0), "a1").summary()
    assert "build(" not in caplog.text
    HeteroFL(lambda dropout: build(1.0), "a1-c1").summary()
    assert "build(0.25) has the shapes of build(1), so all clients train the whole model" in caplog.text


def test_levels_that_are_one_model_are_warned_of(caplog):
    def floored(rate):
        hidden = max(4, width(16, rate))
        return nn.Sequential(nn.Linear(3, hidden), nn.GroupNorm(4, hidden), nn.Linear(hidden, 2))

    HeteroFL(floored, "a1-b1-c2").summary()
    assert "very same" not in caplog.text
    HeteroFL(floored, "a1-c1-e1").summary()
    assert "levels c, e build the very same model: its widths are rounded" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda rate, classes: build(rate), r"<lambda>\(rate, classes\) cannot .*missing a required argument"),
        (build(1.0), "build is a model, Tiny; expected a function from a rate to a model"),
        (lambda rate: build(rate).state_dict(), r"build\(0.5\) returns a OrderedDict; expected a torch.nn.Module"),
        (lambda hidden: nn.Linear(hidden, 4), r"build\(.*\) fails \(TypeError: .*: its argument is a rate"),
    ],
)
def test_what_builds_no_model_of_a_rate_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        HeteroFL(wrong, "b1-c1")
