"""Under Flower's own loop and its own wrappers: client-side clipping for differential privacy, and mods."""

from functools import partial

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid
from heterofl_flwr.client import answer_queries
from heterofl_flwr.stages.server_optimizer import Momentum
from tests.federation import tiny
from tests.federation.tiny import Watched, add_one, bare_reply, build, build_normed, equal, inputs, make_app, play


def app_with(mod, build=build):
    """Return an app whose mod works on training alone; queries carry no parameters to clip."""
    app = ClientApp()
    app.train(mods=[mod])(lambda message, context: add_one(message, context, build=build))
    app.evaluate()(lambda message, context: tiny.judge(message, context, build=build))
    answer_queries(app, build, data=lambda context: [inputs(context.node_config["partition-id"])])
    return app


def initial(strategy):
    return ArrayRecord(strategy.federation.initial_state())


def test_flowers_own_loop_gives_the_same_model():
    states = []
    for start in (HeteroFL.start, Strategy.start):
        with LocalGrid(make_app(build=build_normed), 5) as grid:
            strategy = HeteroFL(build_normed, "a1-b1-c1", stages=[Momentum(server_momentum=0.5)])
            result = start(strategy, grid, initial(strategy), 3)
            states.append((result.arrays.to_torch_state_dict(), result.evaluate_metrics_clientapp))
    assert equal(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]


def test_fixed_clipping_on_clients_bounds_their_changes():
    """The noise is switched off here: its scale assumes that all clients hold every entry, which is not so."""
    with Watched(app_with(fixedclipping_mod, build_normed), 4) as grid:
        inner = HeteroFL(build_normed, "a1-c1", learning_rate=lambda server_round: 0.1)
        strategy = DifferentialPrivacyClientSideFixedClipping(
            inner, noise_multiplier=0.0, clipping_norm=0.25, num_sampled_clients=4
        )
        first = initial(inner)
        result = strategy.start(grid, first, num_rounds=2)
        configs = [message.content["config"] for message in grid.of("train")]
    assert {(config["rate"], config["clipping_norm"]) for config in configs} == {(1.0, 0.25), (0.25, 0.25)}
    old, new = first.to_torch_state_dict(), result.arrays.to_torch_state_dict()
    change = torch.cat([(new[name] - old[name]).flatten() for name in new])
    # In each round two regions, held by four and by two clients, each move by a mean of changes of at most 0.25.
    assert 0.01 < change.norm() <= 2 * 0.25 * 2**0.5 + 1e-5
    assert list(result.evaluate_metrics_clientapp) == [1, 2]


def test_noise_on_the_clients_runs_with_slices():
    mod = LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=10.0, delta=1e-5)
    found = play(app_with(mod), "a1-c1", 4)
    assert found.log.failures == {}
    assert all(tensor.isfinite().all() for tensor in found.state.values())


SERVER_SIDE = (
    partial(DifferentialPrivacyServerSideFixedClipping, noise_multiplier=0.0, clipping_norm=1.0),
    partial(DifferentialPrivacyServerSideAdaptiveClipping, noise_multiplier=0.0),
)


@pytest.mark.parametrize("wrapper", SERVER_SIDE)
def test_clipping_on_the_server_fails_where_clients_train_slices(wrapper):
    with LocalGrid(make_app(), 4) as grid:
        inner = HeteroFL(build, "a1-c1")
        strategy = wrapper(inner, num_sampled_clients=4)
        with pytest.raises(ValueError, match="operands could not be broadcast together"):
            strategy.start(grid, initial(inner), num_rounds=1)


@pytest.mark.parametrize("wrapper", SERVER_SIDE)
def test_clipping_on_the_server_runs_with_whole_models(wrapper):
    with LocalGrid(make_app(), 4) as grid:
        inner = HeteroFL(build, "a1", evaluation=Evaluation(every=0))
        state = wrapper(inner, num_sampled_clients=4).start(grid, initial(inner), num_rounds=1).arrays
    assert not equal(state.to_torch_state_dict(), initial(inner).to_torch_state_dict())


def whole_model(message, context, **records):
    """Answer as an app of Flower's own does that trains a model of its own size."""
    arrays = ArrayRecord(build(1.0).state_dict())
    return bare_reply(message, arrays=arrays, metrics=MetricRecord({"num-examples": 1}), **records)


def load_whole(message, context):
    build(1.0).load_state_dict(message.content["arrays"].to_torch_state_dict())


@pytest.mark.parametrize(
    ("train", "fault"), [(whole_model, "sent the whole model, expected the slice"), (load_whole, "size mismatch")]
)
def test_a_client_that_is_not_converted_is_refused(train, fault):
    failure = play(make_app(odd={1: train}), "a1-c1", 2).log.failures[1]
    assert fault in failure
    assert "its ClientApp is not converted: let it call answer_queries once" in failure
    assert ("leave them out of HeteroFL(shared=...)" in failure) == (train is load_whole)
