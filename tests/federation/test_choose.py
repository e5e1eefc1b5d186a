"""Slices that are no prefixes: the mean of what came back, in both APIs, and the settings that lead there."""

import copy
from itertools import product
from typing import get_args

import pytest
import torch
from torch import nn

from heterofl_flwr import Evaluation, HeteroFL, Slicing, Windowed
from heterofl_flwr.client import Task
from heterofl_flwr.client.load_model import load_parameters
from heterofl_flwr.common.errors import ConfigError, UnsupportedLayerError
from heterofl_flwr.core import axes_between, exchange_frozen, register, width
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.slice_rules import SliceRule, make_slice_function
from heterofl_flwr.nn import build_model, collect_moments
from heterofl_flwr.nn.models import MODELS
from heterofl_flwr.report import Costs, Recorder, RunFolder, load_model
from tests.federation.tiny import build_normed, equal, inputs, make_app, play, twin


def run(rule, num_rounds=1, mix="a1-b1-c1", **options):
    found = play(None, mix, 6, num_rounds, wrap=lambda grid: Windowed(grid, 2), slice_rule=rule, **options)
    return found.strategy, found.grid, found.state


@pytest.mark.parametrize(
    "options", [{"slice_rule": "important"}, {"growth": 1}, {"by_level": ["norm.*", "classifier.bias"]}], ids=str
)
def test_equal_widths_give_heterofl_bit_for_bit(options):
    plain, found = (
        play(make_app(build=build_normed), "a1", 3, 3, build=build_normed, **own).state for own in ({}, options)
    )
    assert equal(plain, found)


LARGER = {"mix": "b1-c1", "global_rate": "a"}


@pytest.mark.parametrize(
    ("rule", "options"), [("prefix", {}), ("rolling", LARGER), ("random-level", {}), ("random-client", LARGER)]
)
def test_each_entry_is_the_mean_over_those_that_held_it(rule, options):
    strategy, grid, state = run(rule, 2, **options)
    assert strategy.log.failures == {}
    assert strategy.federation.architecture.model.hidden.out_features == 8
    for name, expected in twin(strategy.federation, grid.get_node_ids(), 2).items():
        torch.testing.assert_close(state[name], expected)


@pytest.mark.parametrize("rule", get_args(SliceRule))
def test_the_slice_of_a_client_is_that_of_its_rule_round_and_partition(rule):
    strategy = HeteroFL(build_normed, "a1-c1", slicing=Slicing(slice_rule=rule), seed=3)
    architecture = strategy.federation.architecture
    for server_round, partition in product((1, 2, 5), range(4)):
        function = make_slice_function(rule, seed=3, server_round=server_round, rate=0.25, partition=partition)
        assert architecture.train_plan(server_round, 0.25, partition) == architecture.plan(0.25).sliced(function)


def test_a_level_is_evaluated_on_its_slice_and_moments():
    seen = []

    def evaluate(message, context):
        task = Task(message, context, build_normed)
        seen.append([(rate, copy.deepcopy(model)) for rate, model in task.models()])
        return task.reply(num_examples=1)

    app, evaluation = make_app(build=build_normed, evaluate=evaluate), Evaluation(every=4, levels=True)
    found = play(app, "a1-c1", 3, 4, build=build_normed, slice_rule="rolling", evaluation=evaluation)
    federation = found.federation
    plan = federation.architecture.plan(0.25).sliced(federation.evaluated_slice(4, 0.25))
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


@pytest.mark.parametrize("config", [{}, {"level": "c"}], ids=["no capacity", "a capacity"])
def test_a_runs_model_of_a_level_is_the_slice_that_was_evaluated_also_after_a_resume_without_rounds(tmp_path, config):
    seen = {}

    def evaluate(message, context):
        task = Task(message, context, build_normed)
        seen.update((rate, copy.deepcopy(model).state_dict()) for rate, model in task.models())
        return task.reply(num_examples=1, metrics={"loss": 1.0})

    def run(**start):
        recorder = Recorder(tmp_path, costs=Costs(build_normed, "a1-c1", inputs(0)))
        options = {"build": build_normed, "slice_rule": "rolling", "evaluation": Evaluation(levels=True)}
        options |= {"callbacks": [recorder], "start": start, "node_config": lambda partition: config}
        play(make_app(build=build_normed, evaluate=evaluate), "a1-c1", 3, 4, **options)

    run()
    for resumed in (False, True):
        if resumed:
            run(resume=RunFolder(tmp_path).load_checkpoint())
        for rate, expected in seen.items():
            assert equal(load_model(tmp_path, level_name(rate), build_normed).state_dict(), expected)


class Waves(nn.Module):
    """A table of sines by channel, a function of the width, beside a layer."""

    def __init__(self, rate):
        super().__init__()
        self.head = nn.Linear(width(8, rate), 3)
        self.register_buffer("table", torch.arange(float(width(8, rate))).sin().repeat(6, 1))


def test_tables_by_channel_that_would_not_move_are_refused():
    text = r"slice_rule is 'rolling', but the model's buffers table have a value for each channel.* build\(0.25\)"
    with pytest.raises(ConfigError, match=text):
        play(make_app(build=Waves), "a1-c1", 2, build=Waves, slice_rule="rolling", assignment="dynamic")
    with pytest.raises(ConfigError, match=text):  # a node may have a smaller rate than the mix
        HeteroFL(Waves, "a1", slicing=Slicing(slice_rule="rolling")).federation.architecture.plan(0.25)
    assert HeteroFL(Waves, "a1-c1").federation.architecture.plan(0.25).parameters == 2 * 3 + 3


def test_a_table_that_is_a_frozen_parameter_moves():
    """What the errors of a table in a buffer, and of a parameter without a rule, say to do."""

    class Held(nn.Module):
        def __init__(self, rate):
            super().__init__()
            self.head, self.table = nn.Linear(width(8, rate), 3), nn.Parameter(Waves(rate).table, requires_grad=False)

    def build(rate):
        return exchange_frozen(Held(rate))

    slicing = Slicing(slice_rule="rolling")
    with pytest.raises(UnsupportedLayerError, match=r"core\.axes_between\(full\.weight\.shape, local\.weight\.shape\)"):
        HeteroFL(build, "a1-c1", slicing=slicing)
    register(Held)(lambda full, local: {"table": axes_between(full.table.shape, local.table.shape)})
    plan = HeteroFL(build, "a1-c1", slicing=slicing).federation.architecture.plan(0.25)
    assert plan.parameters == 2 * 3 + 3 + 6 * 2


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_this_package_may_have_slices_that_move(name):
    build = build_model(name, **({"vocabulary": 11} if name == "transformer" else {}))
    architecture = HeteroFL(build, "d1", slicing=Slicing(slice_rule="rolling")).federation.architecture
    assert architecture.plan(0.0625).parameters
