"""Parameters that stay with their clients: LG-FedAvg with either part shared, and Standalone; and FedAvg's weights."""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord

from heterofl_flwr import Evaluation, HeteroFL, Slicing
from heterofl_flwr.client import Instruction, Task
from heterofl_flwr.client.state import load_tensors, save_tensors
from heterofl_flwr.common.errors import RoundError
from heterofl_flwr.core.randomness import initial_state
from heterofl_flwr.federation.capability import Capability
from heterofl_flwr.report import Recorder, RunFolder
from tests.federation import tiny
from tests.federation.tiny import add_one, build, inputs, make_app

NODES = 4
BODY, HEAD = ("hidden.*",), ("classifier.*",)


train = partial(add_one, labels=[0, 1])


def judge(message, context):
    """Report the client's own model on its own data."""
    task = Task(message, context, build)
    model = task.model()
    with torch.inference_mode():
        output = model(inputs(context.node_config["partition-id"])).mean().item()
    return task.reply(num_examples=1, metrics={"output": output, "local-accuracy": 0.5})


def saved(context, message):
    """Return what a client has saved up to the round of a message, and in it."""
    return load_tensors(context, replace(Instruction.of(message), kind="evaluate"))


def play(shared, mix="a1-c1", num_rounds=2, **options):
    found = tiny.play(make_app(train, judge), mix, NODES, num_rounds, shared=shared, **options)
    contexts = found.grid._contexts.values()
    kept = {own.node_config["partition-id"]: saved(own, found.grid.of("train")[-1]) for own in contexts}
    return found.strategy, found.grid, found.state, kept


@pytest.mark.parametrize("shared", [BODY, HEAD])
def test_what_is_shared_is_averaged_and_the_rest_stays(shared):
    strategy, grid, state, kept = play(shared, "a1")
    assert strategy.log.failures == {}
    whole = initial_state(build, 1.0, 0)
    mine = {name for name in whole if name.startswith(shared[0][:-1])}
    assert set(state) == mine
    for message in grid.of("train"):
        assert set(message.content["arrays"]) == mine
    for name in mine - {"classifier.weight", "classifier.bias"}:
        torch.testing.assert_close(state[name], whole[name] + 2 * 2.5)  # clients add 1, 2, 3 and 4
    for partition, own in kept.items():
        assert set(own) == set(whole) - mine
        for name, tensor in own.items():
            torch.testing.assert_close(tensor, whole[name] + 2 * (1 + partition))


def test_initial_values_of_what_stays_with_clients_are_not_used_and_named(caplog):
    arrays = ArrayRecord(build(1.0).state_dict())
    tiny.play(make_app(train, judge), nodes=2, num_rounds=2, shared=BODY, start={"initial_arrays": arrays})
    (line,) = [line for line in caplog.messages if "initial model" in line]
    assert line.startswith("the initial model has classifier.bias, classifier.weight, which clients do not get")


def test_rows_of_a_shared_classifier_count_by_label():
    whole = initial_state(build, 1.0, 0)
    state = play(HEAD, "a1")[2]
    torch.testing.assert_close(state["classifier.bias"][:2], whole["classifier.bias"][:2] + 5)
    assert torch.equal(state["classifier.bias"][2:], whole["classifier.bias"][2:])
    assert play(BODY, "a1")[0].log.failures == {}


def test_a_client_keeps_its_rate_whatever_it_reports():
    federation = HeteroFL(build, "a1-c1", slicing=Slicing(shared=BODY)).federation
    federation.register({node: Capability(partition=node) for node in (0, 1)})
    assert [federation.levels.rate(1, node) for node in (0, 1)] == [1.0, 0.25]
    federation.nodes.set_capacity(0, 0.25, rate=1.0)
    federation.register({node: Capability(partition=node) for node in (2, 3)})
    assert [federation.levels.rate(2, node) for node in range(4)] == [1.0, 0.25, 1.0, 0.25]


def test_standalone_sends_no_parameter_and_a_smaller_client_begins_with_its_slice():
    strategy, grid, state, kept = play((), num_rounds=1)
    assert state == {}
    assert strategy.log.bytes_down == strategy.log.bytes_up == 0
    assert all(not message.content["arrays"] for message in grid.of("train"))
    assert len(strategy.log.received_rates) == NODES  # a message without parameters is sent too
    assert all(len(own) == 4 for own in kept.values())
    whole = initial_state(build, 1.0, 0)
    torch.testing.assert_close(kept[3]["hidden.weight"], whole["hidden.weight"][:2] + 4)


def test_each_client_evaluates_its_own_model():
    evaluation = Evaluation(every=1, levels=True)
    strategy, grid, _, _ = play(BODY, "a1-c1", evaluation=evaluation)
    asked = grid.of("evaluate")[-NODES:]
    assert [message.content["config"]["rate"] for message in asked] == [1.0, 1.0, 0.25, 0.25]
    assert strategy.log.evaluate["coverage"] == 1
    assert strategy.log.evaluate["local-accuracy"] == 0.5
    assert grid.of("query.moments") == []


def test_who_holds_none_of_what_stays_with_clients_has_nothing_to_lose():
    found = tiny.play(make_app(train, judge), "a1", 2, 2, shared=("*.*",), evaluation=Evaluation())
    assert (found.log.failures, found.log.evaluate_failures) == ({}, {})


def test_a_second_run_on_a_grid_begins_with_layers_of_its_own():
    whole = initial_state(build, 1.0, 0)
    with tiny.Watched(make_app(train, judge), 2) as grid:
        for _ in range(2):
            HeteroFL(build, "a1", slicing=Slicing(shared=BODY), evaluation=tiny.NEVER).start(grid, num_rounds=1)
        kept = [saved(own, grid.of("train")[-1]) for own in grid._contexts.values()]
    for number, own in enumerate(kept, 1):
        torch.testing.assert_close(own["classifier.bias"], whole["classifier.bias"] + number)


LOST = "has trained in this run, and the layers that stay with it .* are gone: .*states-path"


def test_who_kept_nothing_over_a_break_does_not_begin_anew(tmp_path):
    folder = RunFolder(tmp_path)
    tiny.play(make_app(train, judge), nodes=4, fraction_train=0.5, shared=BODY, callbacks=[Recorder(folder)])
    state = folder.load_checkpoint()
    assert len(state.trained) == 2
    again = tiny.play(make_app(train, judge), "a1", 4, 2, start={"resume": state}, shared=BODY)
    assert set(again.log.failures) == set(state.trained)
    assert all(re.search(LOST, fault) for fault in again.log.failures.values())
    assert again.progress[-1].trained == [0, 1, 2, 3]


def test_who_has_not_trained_yet_begins_with_those_of_the_seed():
    found = tiny.play(make_app(train, judge), shared=BODY, evaluation=Evaluation(), fraction_train=0.5, nodes=4)
    assert found.log.evaluate_failures == {}
    said = {found.grid.partition_of(own): own.content["config"]["has-trained"] for own in found.grid.of("evaluate")}
    assert said == {partition: partition in found.log.rates for partition in range(4)}


def test_what_a_client_kept_for_another_model_is_told_apart():
    kept, found = initial_state(build, 0.5, 0), r"classifier\.weight: \(4, 4\), expected \(4, 8\)"

    def keeps(message, context):
        task = Task(message, context, build)
        save_tensors(context, replace(task.instruction, server_round=0), kept)
        return task.reply(task.model(), num_examples=1)

    expected = rf"parameters that this client kept do not fit its model at rate 1 \({found}\): a client must keep its"
    with pytest.raises(RoundError, match=expected):
        tiny.play(make_app(keeps), nodes=2, shared=BODY)
