"""Server optimisers, and runs with each stage that go on where they stopped."""

from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import pairwise

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi

from heterofl_flwr import (
    Adagrad,
    Adam,
    Averaging,
    Evaluation,
    HeteroFL,
    LocalGrid,
    Momentum,
    MovingAverage,
    Training,
    Yogi,
)
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.stages.server_optimizer import Nesterov
from tests.federation.tiny import bare_reply, build, build_normed, config, equal, make_app, play

OPTIMIZERS = (Momentum(server_momentum=0.9), Adam(), Yogi(), Adagrad())


def run(num_rounds, stage, *, resume=None, **options):
    options = {"fraction_train": 0.3, "assignment": "dynamic", "start": {"resume": resume}} | options
    return play(None, "a1-b1-c1", 6, num_rounds, stages=[stage] if stage else [], **options)


def nudge(message, context):
    """Train, for any strategy: move half of the entries at random, by the round and the partition, and leave others."""
    partition, server_round = context.node_config["partition-id"], message.content["config"]["server-round"]
    draw = torch.Generator().manual_seed(10 * server_round + partition)
    state = message.content["arrays"].to_torch_state_dict()
    for tensor in state.values():
        tensor += 0.1 * torch.randn(tensor.shape, generator=draw) * (torch.rand(tensor.shape, generator=draw) < 0.5)
    said = MetricRecord({"num-examples": 1 + partition})
    return bare_reply(message, arrays=ArrayRecord(state), metrics=said, config=config())


def in_double(rate):
    return build(rate).double()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_entries_that_nobody_held_keep_still(optimizer):
    found = run(8, optimizer, seed=3)
    assert min(max(one.rates.values()) for one in found.records) < 1  # in some rounds nobody held the full model
    for before, after in pairwise(found.progress):
        largest = found.architecture.plan(max(after.record.rates.values())).shapes["hidden.bias"][0]
        kept = [name for name in after.stages if name.endswith("hidden.bias")]
        assert kept
        for one, two, names in ((before.state, after.state, ["hidden.bias"]), (before.stages, after.stages, kept)):
            for name in names:
                assert torch.equal(one[name][largest:], two[name][largest:])
                assert not torch.equal(one[name][:largest], two[name][:largest])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (partial(FedAvgM, server_learning_rate=0.5, server_momentum=0.9), Momentum),
        (FedAdam, Adam),
        (partial(FedAdam, eta=1e-2, beta_1=0.5, beta_2=0.8, tau=1e-2), Adam),
        (partial(FedYogi, eta=0.2, beta_1=0.0, beta_2=0.5), Yogi),
        (partial(FedAdagrad, eta=1e-2, tau=1e-2), Adagrad),
    ],
)
def test_one_level_gives_what_flowers_optimizers_give(theirs, ours):
    """In double precision: in single, the plain means differ by rounding, which a small tau enlarges."""
    numbers = getattr(theirs, "keywords", {})
    states = []
    for strategy in (
        theirs(min_available_nodes=4, fraction_evaluate=0.0),
        HeteroFL(
            in_double,
            "a1",
            averaging=Averaging(weights="examples"),
            stages=[ours(**numbers)],
            evaluation=Evaluation(every=0),
        ),
    ):
        arrays = ArrayRecord(HeteroFL(in_double, "a1").federation.architecture.initial_state())
        with LocalGrid(make_app(nudge), 4) as grid:
            states.append(strategy.start(grid, arrays, num_rounds=4).arrays.to_torch_state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-6, rtol=0)
        assert (states[1][name] - arrays.to_torch_state_dict()[name]).abs().max() > 1e-2


def test_options_are_flowers_and_so_are_their_defaults():
    pairs = ((FedAvgM, Momentum), (FedAdam, Adam), (FedYogi, Yogi), (FedAdagrad, Adagrad))
    for theirs, ours in pairs:
        expected = signature(theirs).parameters
        for name, own in signature(ours).parameters.items():
            assert own.default == expected[name].default


STOPS = zip((None, *OPTIMIZERS, Nesterov(0.9)), (2, 1, 2, 3, 2, 1), strict=True)


@pytest.mark.parametrize(
    ("stage", "stop"),
    [(MovingAverage(0.8), 2), *(pytest.param(*own, marks=pytest.mark.release) for own in STOPS)],
    ids=lambda own: type(own).__name__,
)
def test_a_run_that_goes_on_equals_one_that_never_stopped(stage, stop):
    options = {"build": build_normed, "evaluation": Evaluation(every=2, levels=True), "seed": 4}
    whole = run(4, stage, **options)
    resumed = run(4, stage, resume=run(stop, stage, **options).progress[-1], **options)
    assert equal(whole.state, resumed.state)
    assert equal(whole.strategy.chain.state(), resumed.strategy.chain.state())
    for one, two in zip(whole.progress[stop:], resumed.progress, strict=True):
        assert replace(one.record, seconds=0.0) == replace(two.record, seconds=0.0)
        assert equal(one.state, two.state)
        assert equal(one.moments, two.moments)


def test_what_one_optimizer_kept_is_not_anothers():
    state = run(2, Momentum(0.9)).progress[-1]
    state = replace(state, setup={})  # of a checkpoint that does not know its stages
    with pytest.raises(ConfigError, match=r"Momentum.*the stages of this strategy are Adam"):
        run(3, Adam(), resume=state)
    with pytest.raises(ConfigError, match="are none: expected the stages that the run began with"):
        run(3, None, resume=state)


def test_the_learning_rate_falls_after_each_milestone():
    at = Training(learning_rate=0.1, milestones=[150, 250]).schedule
    assert [at(number) for number in (1, 150, 151, 250, 251, 400)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3])
    decayed = Training(learning_rate=0.5, milestones=[1], lr_decay=0.998).schedule
    assert decayed(3) == pytest.approx(0.05 * 0.998**2)
