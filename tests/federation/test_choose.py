"""Slices that are no prefixes: the mean of what came back, in both APIs, and the settings that lead there."""

import numpy as np
import pytest
import torch

from heterofl_flwr import Evaluation, HeteroFL, Windowed
from heterofl_flwr.app.server_app import make_strategy
from heterofl_flwr.app.task import Task
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.settings import from_flat
from tests.federation.tiny import Watched, build, equal, make_app

RULES = ("rolling", "random-level", "random-client")
NODES = 6
MIX = "a1-b1-c1"


def play(rule, num_rounds=1, **options):
    strategy = HeteroFL(build, MIX, slice_rule=rule, evaluation=Evaluation(every=0), **options)
    with Watched(make_app(), NODES) as grid:
        result = strategy.start(Windowed(grid, 2), num_rounds=num_rounds)
        return strategy, grid, result.arrays.to_torch_state_dict()


def twin(federation, nodes, num_rounds):
    """Return the global model, entry by entry."""
    state = {name: tensor.double().numpy() for name, tensor in federation.initial_state().items()}
    for server_round in range(1, num_rounds + 1):
        new = {}
        for name, old in state.items():
            total, count = np.zeros_like(old), np.zeros_like(old)
            for partition, node_id in enumerate(nodes):
                rate = federation.rate(server_round, node_id)
                axes = federation.train_plan(server_round, node_id, rate).axes[name]
                for place in np.ndindex(*old.shape):
                    if all(at in (axis.index or range(axis.kept)) for at, axis in zip(place, axes, strict=True)):
                        total[place] += old[place] + 1 + partition
                        count[place] += 1
            new[name] = np.where(count > 0, total / np.maximum(count, 1), old)
        state = new
    return state


@pytest.mark.parametrize("rule", ["prefix", *RULES])
def test_each_entry_is_the_mean_over_the_clients_that_held_it(rule):
    strategy, grid, state = play(rule, 3)
    assert strategy.log.failures == {}
    for name, expected in twin(strategy.federation, grid.get_node_ids(), 3).items():
        torch.testing.assert_close(state[name], torch.from_numpy(expected).float())


@pytest.mark.parametrize("rule", RULES)
def test_a_client_gets_what_it_is_said_to_hold(rule):
    strategy, grid, _ = play(rule)
    start = strategy.federation.initial_state()
    for message in grid.of("train"):
        config = message.content["config"]
        plan = strategy.federation.train_plan(1, message.metadata.dst_node_id, config["rate"])
        assert equal(message.content["arrays"].to_torch_state_dict(), plan.extract(start))


def test_clients_of_one_level_share_a_slice_or_do_not():
    number = {}
    for rule in RULES:
        strategy, grid, _ = play(rule)
        federation = strategy.federation
        small = [node for node in grid.get_node_ids() if federation.rate(1, node) == 0.25]
        number[rule] = len({federation.train_plan(1, node, 0.25) for node in small})
    assert number == {"rolling": 1, "random-level": 1, "random-client": 2}


def test_slices_change_from_round_to_round():
    for rule in RULES:
        strategy, grid, _ = play(rule)
        node = next(iter(grid.get_node_ids()))
        assert strategy.federation.train_plan(1, node, 0.25) != strategy.federation.train_plan(2, node, 0.25)


@pytest.mark.parametrize("upload", ["float16", "int8"])
def test_what_changed_is_added_to_the_slice_that_was_sent(upload):
    exact, found = play("random-client")[2], play("random-client", upload=upload)[2]
    for name, tensor in exact.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-2)


def test_a_rule_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="slice_rule is 'random', expected one of prefix, rolling, random-level"):
        HeteroFL(build, slice_rule="random")


def test_it_is_a_setting():
    task = Task(from_flat({"server.choose": "rolling"}))
    assert make_strategy(task, ()).options.transfer.slice_rule == "rolling"
