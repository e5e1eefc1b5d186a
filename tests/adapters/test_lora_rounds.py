"""Rounds with LoRA adapters of unequal rank, in both APIs: what travels, what the server computes, what is stored."""

from functools import cache

import pytest
import torch

from heterofl_flwr import HeteroFL, Mix, lora
from heterofl_flwr.client import Task
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.report import Costs, Recorder, RunFolder
from tests.adapters.nets import CASES, outputs, words
from tests.federation.tiny import Watched, equal, make_app, play, twin

MIX, NODES = "a1-b1-d1", 6


@cache
def levels():
    """Return the build of these tests' model."""
    return lora(CASES["plain"]())


def evaluate(message, context):
    task = Task(message, context, levels())
    found = outputs(task.model()).mean().item()
    return task.reply(num_examples=1, metrics={"output": found})


def run(num_rounds=2, **options):
    return play(make_app(evaluate=evaluate, build=levels()), MIX, NODES, num_rounds, build=levels(), **options)


@pytest.mark.parametrize("options", [{"assignment": "dynamic"}, {"slice_rule": "random-client"}], ids=str)
def test_each_entry_is_the_mean_over_the_clients_that_held_it(options):
    found = run(**options)
    assert found.log.failures == {}
    for name, expected in twin(found.federation, found.grid.get_node_ids(), 2).items():
        torch.testing.assert_close(found.state[name], expected)
    base, fresh = levels(), CASES["plain"]()
    assert all(torch.equal(base.model.get_parameter(name), fresh.get_parameter(name)) for name in base.frozen)


def test_a_run_goes_on_from_a_checkpoint_of_adapters_alone(tmp_path):
    costs = Costs(levels(), Mix.parse(MIX), words())
    assert costs.model().global_model.bytes == sum(
        128 + 8 * own.numel() for own in exchanged_parameters(levels()(1.0)).values()
    )
    folder = RunFolder(tmp_path / "run")
    run(1, callbacks=[Recorder(folder, costs=costs)])
    checkpoint = folder.load_checkpoint()
    assert checkpoint.state.keys() == exchanged_parameters(levels()(1.0)).keys()
    with Watched(make_app(build=levels()), NODES) as grid:
        strategy = HeteroFL(levels(), MIX, fraction_evaluate=0.0)
        resumed = strategy.start(grid, num_rounds=2, resume=checkpoint).arrays.to_torch_state_dict()
    assert equal(resumed, run(2).state)
