"""Slices that are no prefixes: the mean of what came back, in both APIs, and the settings that lead there."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from heterofl_flwr import Evaluation, HeteroFL, Windowed
from heterofl_flwr.app.server_app import make_strategy
from heterofl_flwr.app.task import Task
from heterofl_flwr.client import models_to_evaluate, reply
from heterofl_flwr.core import Mix, width
from heterofl_flwr.elastic_models import elastic
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.local_model import load_parameters
from heterofl_flwr.nn.models import MODELS, build_model
from heterofl_flwr.nn.static_norm import collect_moments
from heterofl_flwr.runs import Costs, Recorder, RunFolder, load_model
from heterofl_flwr.settings import from_flat
from tests.federation.tiny import build_normed, equal, inputs, make_app, play, twin

RULES = ("rolling", "random-level", "random-client")


def run(rule, num_rounds=1, **options):
    found = play(None, "a1-b1-c1", 6, num_rounds, wrap=lambda grid: Windowed(grid, 2), slice_rule=rule, **options)
    return found.strategy, found.grid, found.state


@pytest.mark.parametrize("rule", ["prefix", *RULES])
def test_each_entry_is_the_mean_over_the_clients_that_held_it(rule):
    strategy, grid, state = run(rule, 3)
    assert strategy.log.failures == {}
    for name, expected in twin(strategy.federation, grid.get_node_ids(), 3).items():
        torch.testing.assert_close(state[name], expected)


@pytest.mark.parametrize(("rule", "slices"), [("rolling", 1), ("random-level", 1), ("random-client", 2)])
def test_clients_of_one_level_share_a_slice_or_do_not_and_slices_change_from_round_to_round(rule, slices):
    strategy, grid, _ = run(rule)
    federation = strategy.federation
    small = [node for node in grid.get_node_ids() if federation.rate(1, node) == 0.25]
    assert len({federation.train_plan(1, node, 0.25) for node in small}) == slices
    assert federation.train_plan(1, small[0], 0.25) != federation.train_plan(2, small[0], 0.25)


@pytest.mark.parametrize("upload", ["float16", "int8"])
def test_what_changed_is_added_to_the_slice_that_was_sent(upload):
    exact, found = run("random-client")[2], run("random-client", upload=upload)[2]
    for name, tensor in exact.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-2)


def test_it_is_a_setting():
    task = Task(from_flat({"server.choose": "rolling", "server.roll-by": 6}))
    transfer = make_strategy(task, ()).options.transfer
    assert (transfer.slice_rule, transfer.roll_by) == ("rolling", 6)


def test_a_window_that_moves_on_by_more_is_trained_and_evaluated_where_it_was():
    evaluation = Evaluation(every=2, levels=True)
    found = play(None, "a1-c1", 2, 2, slice_rule="rolling", roll_by=3, evaluation=evaluation)
    federation, (node,) = found.strategy.federation, [own for own, rate in found.strategy.log.rates.items() if rate < 1]
    kept = [federation.train_plan(own, found.grid.get_node_ids()[node], 0.25).axes for own in (1, 2, 3)]
    assert [axes["hidden.weight"][0].index or (0, 1) for axes in kept] == [(0, 1), (3, 4), (6, 7)]
    assert found.grid.of("evaluate")[0].content["config"]["window"] == 4


@pytest.mark.parametrize("rule", RULES)
def test_a_global_model_larger_than_every_client_is_the_mean_over_those_that_held_its_entries(rule):
    found = play(None, "b1-c1", 6, 3, slice_rule=rule, global_rate="a")
    assert found.strategy.federation.model.hidden.out_features == 8  # 4 and 2 of which clients hold
    assert set(found.strategy.log.rates.values()) == {0.5, 0.25}
    for name, expected in twin(found.strategy.federation, found.grid.get_node_ids(), 3).items():
        torch.testing.assert_close(found.state[name], expected)


def test_the_larger_global_model_is_evaluated_beside_the_levels():
    evaluation = Evaluation(every=1, levels=True)
    found = play(None, "b1-c1", 4, slice_rule="rolling", global_rate="a", evaluation=evaluation)
    assert set(found.strategy.log.evaluate_by_level) == {"a", "b", "c"}
    assert found.strategy.log.evaluate["coverage"] == 1.0


def test_each_level_is_evaluated_on_the_rounds_slice_with_its_moments():
    seen = []

    def evaluate(message, context):
        seen.append([(rate, copy.deepcopy(model)) for rate, model in models_to_evaluate(message, build_normed)])
        return reply(message, num_examples=1)

    app, evaluation = make_app(build=build_normed, evaluate=evaluate), Evaluation(every=4, levels=True)
    found = play(app, "a1-c1", 3, 4, build=build_normed, slice_rule="rolling", evaluation=evaluation)
    federation = found.strategy.federation
    plan = federation.plan(0.25).sliced(federation.evaluated_slice(4, 0.25))
    assert plan.axes["hidden.weight"][0].index == (3, 4)
    own = build_normed(0.25)
    load_parameters(own, plan.extract(found.state))
    mean, variance = collect_moments(own, [inputs(partition) for partition in range(3)]).statistics("norm")
    for models in seen:
        assert [rate for rate, _ in models] == [1.0, 0.25]
        model = models[1][1]
        assert equal(dict(own.named_parameters()), dict(model.named_parameters()))
        torch.testing.assert_close(model.norm.running_mean, mean.float())
        torch.testing.assert_close(model.norm.running_var, variance.float())
    assert {rate: list(own.layers) for rate, own in found.strategy.moments.items()} == {1.0: ["norm"], 0.25: ["norm"]}


def test_a_runs_model_of_a_level_is_the_slice_that_was_evaluated(tmp_path):
    seen = []

    def evaluate(message, context):
        seen[:] = [copy.deepcopy(model).state_dict() for _, model in models_to_evaluate(message, build_normed)]
        return reply(message, num_examples=1, metrics={"loss": 1.0})

    recorder = Recorder(tmp_path, costs=Costs(build_normed, Mix.parse("a1-c1"), inputs(0)))
    options = {"build": build_normed, "slice_rule": "rolling", "evaluation": Evaluation(levels=True)}
    play(make_app(build=build_normed, evaluate=evaluate), "a1-c1", 3, 4, callbacks=[recorder], **options)
    for name, expected in zip("ac", seen, strict=True):
        assert equal(load_model(RunFolder(tmp_path), name, build_normed).state_dict(), expected)


def test_where_clients_train_prefixes_or_cannot_hold_the_model_a_level_is_its_prefix():
    evaluation = Evaluation(every=2, levels=True, nodes="capable")
    found = play(None, "a1-c1", 2, 2, slice_rule="rolling", evaluation=evaluation)
    assert all("window" not in message.content["config"] for message in found.grid.of("evaluate"))


class Waves(nn.Module):
    """Words and sines of their positions; ``table`` holds those, a function of them."""

    def __init__(self, rate, hold):
        super().__init__()
        hidden = width(8, rate)
        self.words = nn.Embedding(11, hidden)
        self.head = nn.Linear(hidden, 3)
        table = torch.outer(torch.arange(6.0), torch.logspace(0, -3, 8)).sin()[:, :hidden]
        hold(self, table)

    def forward(self, x):
        return self.head(self.words(x) + self.table[: x.shape[1]])


def as_buffer(model, table):
    model.register_buffer("table", table)


def as_parameter(model, table):
    model.table = nn.Parameter(table, requires_grad=False)


@pytest.mark.parametrize("rule", RULES)
def test_tables_by_channel_that_would_not_move_with_the_slice_are_refused(rule):
    build = partial(Waves, hold=as_buffer)
    text = rf"slice_rule is '{rule}', but the model's buffers table have entries by channel, of which build\(0.25\)"
    with pytest.raises(ConfigError, match=text):
        play(make_app(build=build), "a1-c1", 2, build=build, slice_rule=rule, assignment="dynamic")
    level = HeteroFL(build, "a1", slice_rule=rule)  # a node may have a smaller rate than the mix
    level.federation.plan(1.0)
    with pytest.raises(ConfigError, match=text):
        level.federation.plan(0.25)
    assert HeteroFL(build, "a1-c1").federation.plan(0.25).parameters == 2 * (11 + 3) + 3


def grouped(rate):
    groups = width(4, rate)
    middle = nn.Conv2d(2 * groups, 2 * groups, 3, groups=groups)
    return nn.Sequential(nn.Conv2d(3, 2 * groups, 1), middle, nn.Conv2d(2 * groups, 2, 1))


def test_groups_that_moving_slices_would_mix_are_refused_before_a_round():
    with pytest.raises(ConfigError, match=r"1.weight, 1.bias keep a prefix of their groups or heads"):
        HeteroFL(grouped, "a1-b1", slice_rule="rolling").federation.plan(0.5)
    assert HeteroFL(grouped, "a1-b1").federation.plan(0.5).is_prefix
    build = elastic(grouped(1.0), torch.zeros(1, 3, 3, 3))
    assert HeteroFL(build, "a1-b1", slice_rule="rolling").federation.plan(0.5).parameters


def test_a_table_that_is_a_parameter_moves_with_the_slice():
    build = elastic(Waves(1.0, as_parameter), torch.zeros(1, 6, dtype=torch.int64))
    federation = HeteroFL(build, "a1-c1", slice_rule="rolling").federation
    federation.register({0: Capability(capacity=0.25)})
    state, part = federation.initial_state(), federation.train_plan(4, 0, 0.25)
    assert torch.equal(part.extract(state)["table"], state["table"][:, 3:5])


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_this_package_may_have_slices_that_move(name):
    build = build_model(name, **({"vocabulary": 11} if name == "transformer" else {}))
    assert HeteroFL(build, "a1-e1", slice_rule="rolling").federation.plan(0.0625).parameters
