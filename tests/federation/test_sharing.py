"""Parameters that stay with their clients: LG-FedAvg with either part shared, and Standalone; and FedAvg's weights."""

import logging

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, messages
from heterofl_flwr.classic import HeteroFL as Classic
from heterofl_flwr.client import own_part, reply, submodel
from heterofl_flwr.core.randomness import initial_state
from heterofl_flwr.errors import ConfigError, RoundError
from tests.federation.tiny import Watched, build, inputs, make_app

NODES = 4
BODY, HEAD = ("hidden.*",), ("classifier.*",)


def train(message, context):
    """Add one more than the partition to all parameters; keep what stays here in the node's state."""
    kept = context.state.get("kept")
    model = submodel(message, build, None if kept is None else kept.to_torch_state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1 + context.node_config["partition-id"]
    context.state["kept"] = ArrayRecord(own_part(message, model))
    return reply(message, model, num_examples=1 + context.node_config["partition-id"], labels=[0, 1])


def judge(message, context):
    """Report the client's own model on its own data."""
    model = submodel(message, build, context.state["kept"].to_torch_state_dict())
    with torch.inference_mode():
        output = model(inputs(context.node_config["partition-id"])).mean().item()
    return reply(message, num_examples=1, metrics={"output": output, "local-accuracy": 0.5})


def play(shared, mix="a1-c1", num_rounds=2, **options):
    strategy = HeteroFL(build, mix, shared=shared, **{"evaluation": Evaluation(every=0), **options})
    with Watched(make_app(train, judge), NODES) as grid:
        result = strategy.start(grid, num_rounds=num_rounds)
        kept = {
            context.node_config["partition-id"]: context.state["kept"].to_torch_state_dict()
            for context in grid._contexts.values()
        }
    return strategy, grid, result.arrays.to_torch_state_dict(), kept


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


def test_rows_of_a_shared_classifier_count_by_label_and_of_one_that_is_not_do_not():
    whole = initial_state(build, 1.0, 0)
    state = play(HEAD, "a1")[2]
    torch.testing.assert_close(state["classifier.bias"][:2], whole["classifier.bias"][:2] + 5)
    assert torch.equal(state["classifier.bias"][2:], whole["classifier.bias"][2:])
    assert play(BODY, "a1")[0].log.failures == {}


def test_standalone_sends_no_parameter():
    strategy, grid, state, kept = play(())
    assert state == {}
    assert strategy.log.bytes_down == strategy.log.bytes_up == 0
    assert all(not message.content["arrays"] for message in grid.of("train"))
    assert all(len(own) == 4 for own in kept.values())


def test_a_smaller_client_begins_with_its_slice_of_the_run_s_model():
    kept = play((), "a1-c1", num_rounds=1)[3]
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


def test_evaluate_fn_gets_what_is_shared_whatever_the_run_began_with():
    seen = []
    with LocalGrid(make_app(train, judge), NODES) as grid:
        strategy = HeteroFL(build, "a1", shared=BODY, evaluation=Evaluation(every=1))
        arrays = ArrayRecord(initial_state(build, 1.0, 0))
        strategy.start(grid, arrays, num_rounds=2, evaluate_fn=lambda number, arrays: seen.append(list(arrays)))
    body = ["hidden.weight", "hidden.bias"]
    assert seen == [list(arrays), body, body]


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        (initial_state(build, 0.5, 0), r"classifier\.weight: \(4, 4\), expected \(4, 8\)"),
        ({}, r"classifier\.bias: None, expected \(4,\); classifier.weight: .*"),
        ({**initial_state(build, 1.0, 0), "extra": torch.ones(1)}, r"extra: \(1,\), expected None"),
    ],
    ids=["of another rate", "none of it", "too much"],
)
def test_what_a_client_kept_for_another_model_is_told_apart(kept, found):
    def keeps(message, context):
        return reply(message, submodel(message, build, kept), num_examples=1)

    expected = rf"parameters that this client kept do not fit its model at rate 1 \({found}\): a client keeps its rate"
    with LocalGrid(make_app(keeps), 2) as grid, pytest.raises(RoundError, match=expected):
        HeteroFL(build, "a1", shared=BODY).start(grid, num_rounds=1)


def test_what_cannot_be_is_refused():
    for options in ({"assignment": "dynamic"}, {"slice_rule": "rolling"}):
        with pytest.raises(ConfigError, match="parameters that are not shared stay with a client"):
            HeteroFL(build, shared=BODY, **options)
    with pytest.raises(ConfigError, match=r"shared: no parameter matches body\.\*; the parameters are hidden.weight"):
        play(("body.*",))
    with pytest.raises(ConfigError, match="none can stay with a client"):
        Classic(build, shared=BODY)


def weigh(message, context):
    model = submodel(message, build)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(
                parameter.shape,
                generator=torch.Generator().manual_seed(len(inputs(context.node_config["partition-id"]))),
            )
    return reply(message, model, num_examples=len(inputs(context.node_config["partition-id"])))


def for_flower(message, context):
    """Train for Flower's own FedAvg, whose messages are not ours."""
    model = build(1.0)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    told = messages.new_config(
        {"rate": 1.0, "global-rate": 1.0, "server-round": 1, "seed": 0, "partition": 0, **message.content["config"]}
    )
    message.content["config"] = told
    return weigh(message, context)


def test_weighted_by_examples_it_is_flower_s_own_fedavg(caplog):
    caplog.set_level(logging.WARNING, "flwr")
    start = initial_state(build, 1.0, 0)
    with LocalGrid(make_app(weigh), NODES) as grid:
        ours = HeteroFL(build, "a1", weights="examples", label_rows=[], evaluation=Evaluation(every=0))
        found = ours.start(grid, ArrayRecord(start), num_rounds=3).arrays.to_torch_state_dict()
    with LocalGrid(make_app(for_flower), NODES) as grid:
        flower = FedAvg(fraction_evaluate=0.0, min_train_nodes=NODES, min_available_nodes=NODES)
        expected = flower.start(grid, ArrayRecord(start), num_rounds=3).arrays.to_torch_state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    equal = HeteroFL(build, "a1", label_rows=[], evaluation=Evaluation(every=0))
    with LocalGrid(make_app(weigh), NODES) as grid:
        other = equal.start(grid, ArrayRecord(start), num_rounds=3).arrays.to_torch_state_dict()
    assert any((other[name] - tensor).abs().max() > 1e-3 for name, tensor in expected.items())
