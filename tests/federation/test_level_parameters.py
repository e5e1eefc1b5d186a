"""Parameters by level: the twin is a plain loop; evaluation, files and resumed runs have each level's own values."""

import copy

import pytest
import torch

from heterofl_flwr import Adam, Evaluation, HeteroFL, LocalGrid, Slicing
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import RoundError
from heterofl_flwr.core import Mix, Plan
from heterofl_flwr.report import Costs, Recorder, RunFolder, load_model
from tests.core.twin import counting_mean, trained_reply
from tests.federation.tiny import NEVER, adding, build, build_normed, crash, equal, inputs, make_app, play

PATTERNS = ["norm.*", "classifier.bias"]
NAMES = ["norm.weight", "norm.bias", "classifier.bias"]
MIX = "a1-b1-c1"


def run(num_rounds=3, **options):
    options = {"app": make_app(build=build_normed), "build": build_normed, "by_level": PATTERNS, **options}
    return play(mix=MIX, nodes=6, num_rounds=num_rounds, **options)


def test_each_level_has_the_mean_of_its_clients_against_a_plain_loop():
    found = run()
    federation = found.federation
    state = federation.architecture.initial_state()
    rates = [federation.levels.rate(1, node_id) for node_id in found.grid.get_node_ids()]
    plans = {rate: federation.architecture.plan(rate) for rate in rates}
    levels = {rate: {name: plans[rate].extract(state)[name].tolist() for name in NAMES} for rate in rates}
    for _ in range(3):
        replies = []
        for partition, rate in enumerate(rates):
            axes = {name: own for name, own in plans[rate].axes.items() if name not in NAMES}
            replies.append(trained_reply(Plan(axes), state, 1 + partition))
        means, _ = counting_mean(state, replies)
        state = {name: torch.from_numpy(mean).float() for name, mean in means.items()}
        for rate, values in levels.items():
            amounts = [1 + partition for partition, own in enumerate(rates) if own == rate]
            for name in NAMES:
                values[name] = [sum(value + amount for amount in amounts) / len(amounts) for value in values[name]]
    for name, tensor in found.state.items():
        torch.testing.assert_close(tensor, torch.tensor(levels[1.0][name]) if name in NAMES else state[name])
    for rate in (0.5, 0.25):
        own = found.strategy.chain.level_tensors(rate)
        assert own.keys() == set(NAMES)
        for name in NAMES:
            torch.testing.assert_close(own[name], torch.tensor(levels[rate][name]))
    assert found.strategy.chain.level_tensors(1.0) == {}


def test_rows_of_classes_count_for_clients_that_name_them():
    train = adding(lambda partition: 1, lambda partition: [partition % 4])
    found = play(make_app(train), "a1-c1", 4, by_level=["classifier.bias"])
    start = found.before["classifier.bias"]
    level = found.strategy.chain.level_tensors(0.25)["classifier.bias"]
    assert torch.equal(found.state["classifier.bias"] != start, torch.tensor([True, True, False, False]))
    assert torch.equal(level != start, torch.tensor([False, False, True, True]))


def test_replies_of_a_round_that_failed_are_in_no_later_run():
    strategy = HeteroFL(build, "a1", slicing=Slicing(by_level=["hidden.bias"]), evaluation=NEVER)
    failing = make_app(adding(lambda partition: 100), odd=dict.fromkeys((1, 2), crash))
    with LocalGrid(failing, 3) as grid, pytest.raises(RoundError, match="1 of 3 clients"):
        strategy.start(grid, num_rounds=1)
    with LocalGrid(make_app(adding(lambda partition: 1)), 3) as grid:
        state = strategy.start(grid, num_rounds=1).arrays.to_torch_state_dict()
    before = strategy.federation.architecture.initial_state()
    torch.testing.assert_close(state["hidden.bias"], before["hidden.bias"] + 1)


def test_evaluation_and_files_have_the_values_of_each_level(tmp_path):
    seen = {}

    def evaluate(message, context):
        task = Task(message, context, build_normed)
        seen.update({rate: copy.deepcopy(model) for rate, model in task.models()})
        return task.reply(num_examples=1, metrics={"loss": 1.0})

    recorder = Recorder(tmp_path, costs=Costs(build_normed, Mix.parse(MIX), inputs(0)))
    app = make_app(build=build_normed, evaluate=evaluate)
    found = run(app=app, evaluation=Evaluation(every=3, levels=True), callbacks=[recorder])
    for rate, level in ((0.5, "b"), (0.25, "c")):
        own = found.strategy.chain.level_tensors(rate)
        saved = load_model(RunFolder(tmp_path), level, build_normed)
        for model in (seen[rate], saved):
            assert all(torch.equal(model.get_parameter(name), own[name]) for name in NAMES)
        assert equal(seen[rate].state_dict(), saved.state_dict())


def test_a_resumed_run_goes_on_equally(tmp_path):
    whole = run(4, stages=[Adam()])
    run(2, stages=[Adam()], callbacks=[Recorder(tmp_path)])
    resumed = run(4, stages=[Adam()], start={"resume": RunFolder(tmp_path).load_checkpoint()})
    assert equal(whole.state, resumed.state)
    assert equal(*(dict(sorted(found.strategy.chain.level_tensors(0.25).items())) for found in (whole, resumed)))


@pytest.mark.parametrize("options", [{"by_level": ["classifier.bias"]}, {"slice_rule": "rolling"}], ids=str)
def test_no_smaller_levels_are_trained_inside_a_client(options):
    architecture = HeteroFL(build, MIX, slicing=Slicing(**options)).federation.architecture
    assert architecture.nested_rates(1.0) == [1.0]
