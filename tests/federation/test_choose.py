"""Slices that are no prefixes: the mean of what came back, in both APIs, and the settings that lead there."""

import numpy as np
import pytest
import torch

from heterofl_flwr import Windowed
from heterofl_flwr.app.server_app import make_strategy
from heterofl_flwr.app.task import Task
from heterofl_flwr.settings import from_flat
from tests.federation.tiny import equal, play

RULES = ("rolling", "random-level", "random-client")


def run(rule, num_rounds=1, **options):
    found = play(None, "a1-b1-c1", 6, num_rounds, wrap=lambda grid: Windowed(grid, 2), slice_rule=rule, **options)
    return found.strategy, found.grid, found.state


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
    strategy, grid, state = run(rule, 3)
    assert strategy.log.failures == {}
    for name, expected in twin(strategy.federation, grid.get_node_ids(), 3).items():
        torch.testing.assert_close(state[name], torch.from_numpy(expected).float())


@pytest.mark.parametrize("rule", RULES)
def test_a_client_gets_what_it_is_said_to_hold(rule):
    strategy, grid, _ = run(rule)
    start = strategy.federation.initial_state()
    for message in grid.of("train"):
        config = message.content["config"]
        plan = strategy.federation.train_plan(1, message.metadata.dst_node_id, config["rate"])
        assert equal(message.content["arrays"].to_torch_state_dict(), plan.extract(start))


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
    task = Task(from_flat({"server.choose": "rolling"}))
    assert make_strategy(task, ()).options.transfer.slice_rule == "rolling"
