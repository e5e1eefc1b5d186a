"""Rounds with LoRA adapters of unequal rank, in both APIs: what travels, what the server computes, what is stored."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.common import parameters_to_ndarrays
from safetensors.torch import load_file

from heterofl_flwr import HeteroFL, LocalGrid, Mix, Momentum, lora
from heterofl_flwr.classic import HeteroFL as ClassicHeteroFL
from heterofl_flwr.classic.client import parameters_of as arrays_of
from heterofl_flwr.classic.client import submodel as classic_submodel
from heterofl_flwr.client import reply, submodel
from heterofl_flwr.core.exchanged import exchanged_parameters
from heterofl_flwr.local_model import load_parameters
from heterofl_flwr.report import Costs, Recorder, RunFolder, load_model
from heterofl_flwr.training.engines.cohort import find_obstacle
from tests.adapters.nets import CASES, adapted, gpt2, outputs, peft, words
from tests.classic.fakes import Fake, fit_all, manager_of
from tests.federation.tiny import Watched, equal, make_app, play, twin

MIX, NODES = "a1-b1-d1", 6
build = lora(CASES["plain"]())
frozen = {name: build.model.get_parameter(name).clone() for name in build.frozen}


def add_one(message, context):
    """Train: add one more than the partition to every parameter that is trained."""
    model, partition = submodel(message, build), context.node_config["partition-id"]
    model(words()).sum().backward()
    with torch.no_grad():
        for own in model.parameters():
            if own.requires_grad:
                own += 1 + partition
    return reply(message, model, num_examples=1, metrics={"loss": 0.0})


def evaluate(message, context):
    found = outputs(submodel(message, build)).mean().item()
    return reply(message, num_examples=1, metrics={"output": found})


def run(num_rounds=2, **options):
    return play(make_app(add_one, evaluate), MIX, NODES, num_rounds, build=build, **options)


@pytest.mark.parametrize(
    "options", [{}, {"assignment": "dynamic"}, {"slice_rule": "rolling"}, {"slice_rule": "random-client"}]
)
def test_each_entry_is_the_mean_over_the_clients_that_held_it(options):
    found = run(**options)
    assert found.log.failures == {}
    for name, expected in twin(found.strategy.federation, found.grid.get_node_ids(), 2).items():
        torch.testing.assert_close(found.state[name], expected)
    assert all(torch.equal(build.model.get_parameter(name), own) for name, own in frozen.items())


def test_a_server_optimizer_steps_from_the_adapters_to_their_mean():
    found = run(1, stages=[Momentum(server_learning_rate=0.5)])
    mean = twin(found.strategy.federation, found.grid.get_node_ids(), 1)
    for name, old in exchanged_parameters(build(1.0)).items():
        torch.testing.assert_close(found.state[name], (old.detach() + mean[name]) / 2)


def test_messages_hold_adapters_alone_and_of_the_clients_rank():
    found = run(1)
    sizes = {}
    for message in found.grid.of("train"):
        arrays = message.content["arrays"].to_torch_state_dict()
        assert not any("base_layer" in name or "original" in name for name in arrays)
        sizes[message.content["config"]["rate"]] = sum(own.numel() for own in arrays.values())
    trained = {rate: sum(own.numel() for own in build(rate).parameters() if own.requires_grad) for rate in sizes}
    assert sizes == trained
    assert sorted(sizes) == [0.125, 0.5, 1.0]


def test_a_larger_global_rank_needs_only_a_rule_that_moves():
    found = play(make_app(add_one), "b1-d1", 4, 2, build=build, global_rate="a", slice_rule="rolling")
    assert found.state["base_model.model.hidden.lora_A.default.weight"].shape == (8, 8)
    assert {message.content["config"]["rate"] for message in found.grid.of("train")} == {0.5, 0.125}


def test_the_server_evaluates_with_the_adapters_on_its_own_base():
    seen = []

    def central(server_round, arrays):
        model = build(1.0)
        load_parameters(model, arrays.to_torch_state_dict())
        seen.append(outputs(model))
        return MetricRecord({"output": seen[-1].mean().item()})

    with LocalGrid(make_app(add_one), NODES) as grid:
        HeteroFL(build, MIX, fraction_evaluate=0.0).start(grid, num_rounds=1, evaluate_fn=central)
    assert len(seen) == 2
    assert torch.equal(seen[0], outputs(build(1.0)))
    assert not torch.equal(seen[0], seen[1])


def test_a_checkpoint_holds_adapters_alone_and_a_run_goes_on_from_it(tmp_path):
    costs = Costs(build, Mix.parse(MIX), words())
    assert costs.model().full.bytes == sum(128 + 8 * own.numel() for own in exchanged_parameters(build(1.0)).values())
    folder = RunFolder(tmp_path / "run")
    run(1, callbacks=[Recorder(folder, costs=costs)])
    checkpoint = folder.load_checkpoint()
    assert checkpoint.state.keys() == exchanged_parameters(build(1.0)).keys()
    with Watched(make_app(add_one), NODES) as grid:
        strategy = HeteroFL(build, MIX, fraction_evaluate=0.0)
        arrays = ArrayRecord(dict(checkpoint.state))
        resumed = strategy.start(grid, arrays, num_rounds=2, first_round=2).arrays.to_torch_state_dict()
    assert equal(resumed, run(2).state)


def test_a_levels_final_model_is_saved_as_peft_loads_it(tmp_path):
    folder = RunFolder(tmp_path / "run")
    found = run(1, callbacks=[Recorder(folder, costs=Costs(build, Mix.parse(MIX), words()))])
    assert list(load_file(folder.models / "d.safetensors")) == sorted(found.state)
    level = load_model(folder, "d", build)
    level.save_pretrained(tmp_path / "level")
    base = CASES["plain"]().unload()
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "level")
    torch.testing.assert_close(outputs(loaded), outputs(level), rtol=1e-12, atol=1e-12)
    assert not torch.equal(outputs(level), outputs(build(0.125)))


def test_the_classic_api_sends_adapters_alone_too():
    fakes = [Fake(str(cid), 1.0 + cid) for cid in range(3)]
    strategy, manager = ClassicHeteroFL(build, MIX, wait=1.0), manager_of(*fakes)
    before = strategy.initialize_parameters(client_manager=manager)
    asked = strategy.configure_fit(server_round=1, parameters=before, client_manager=manager)
    for _, instruction in asked:
        model = classic_submodel(parameters_to_ndarrays(instruction.parameters), instruction.config, build)
        assert [own.shape for own in arrays_of(model)] == [own.shape for own in exchanged_parameters(model).values()]
    after, _ = strategy.aggregate_fit(1, fit_all(asked), [])
    names = list(exchanged_parameters(build(1.0)))
    gains = [new - old for old, new in zip(*map(parameters_to_ndarrays, (before, after)), strict=True)]
    expected = np.array([2.0] + [1.5] * 3 + [1.0] * 4)  # ranks 8, 4 and 1
    np.testing.assert_allclose(
        gains[names.index("base_model.model.hidden.lora_A.default.weight")], np.repeat(expected[:, None], 8, 1)
    )


def test_clients_with_adapters_train_one_by_one():
    assert find_obstacle(build(1.0)) == "it shares parameters with other models"


def test_a_language_model_generates_at_every_level():
    levels = lora(adapted(gpt2, fan_in_fan_out=True, task_type="CAUSAL_LM"))
    for rate in (1.0, 0.25):
        found = levels(rate).generate(input_ids=words()[:, :3], max_new_tokens=2, do_sample=False, pad_token_id=0)
        assert found.shape == (3, 5)
