"""Both of Flower's APIs, one core: equal seeds give the same global model, bit for bit."""

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.common import Context, parameters_to_ndarrays
from flwr.server import ServerAppComponents, ServerConfig
from flwr.serverapp import ServerApp

import heterofl_flwr
from heterofl_flwr import Adam, Evaluation, LocalGrid, classic
from heterofl_flwr.stages.moving_average import MovingAverage
from tests.classic.numpy_clients import build, classic_app, message_app

NODES, MIX = 6, "a1-b1-c1-d1-e1"
MOVING = {"assignment": "dynamic", "slice_rule": "rolling", "fraction_train": 0.5, "stages": [Adam()], "seed": 3}


class Kept(classic.HeteroFL):
    """The strategy, which keeps what the server got last."""

    def aggregate_fit(self, server_round, results, failures):
        self.last, metrics = super().aggregate_fit(server_round, results, failures)
        return self.last, metrics

    def aggregate_evaluate(self, server_round, results, failures):
        self.loss, metrics = super().aggregate_evaluate(server_round, results, failures)
        return self.loss, metrics


def run(num_rounds, options):
    """Return the strategies of both APIs after a run, and the model of the Message API's."""
    named = {"fraction_fit" if name == "fraction_train" else name: own for name, own in options.items()}
    one, two = Kept(build, MIX, num_rounds=num_rounds, **named), heterofl_flwr.HeteroFL(build, MIX, **options)
    parts = ServerAppComponents(strategy=one, config=ServerConfig(num_rounds=num_rounds))
    with LocalGrid(classic_app, NODES) as grid:
        ServerApp(server_fn=lambda context: parts)(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {}))
    with LocalGrid(message_app, NODES) as grid:
        return one, two, two.start(grid, num_rounds=num_rounds).arrays.to_torch_state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"evaluation": Evaluation(every=4, levels=True)},
        {"evaluation": Evaluation(every=0), **MOVING},
        {"evaluation": Evaluation(every=4), "shared": ("hidden.*",)},
    ],
)
def test_both_apis_give_the_same_model_after_five_rounds(options):
    one, two, state = run(5, options)
    for array, (name, tensor) in zip(parameters_to_ndarrays(one.last), state.items(), strict=True):
        np.testing.assert_array_equal(array, tensor.numpy(), err_msg=name)
    assert one.log.failures == two.log.failures == {}
    assert one.log.rates == two.log.rates
    assert one.log.train == two.log.train
    assert one.log.train_by_level == two.log.train_by_level
    assert one.log.evaluate_by_level == two.log.evaluate_by_level
    if options["evaluation"].every:
        mine = {key: value for key, value in one.log.evaluate.items() if key != "loss"}
        assert mine == two.log.evaluate
        assert one.loss == pytest.approx(1 - mine["local-accuracy"])


def test_both_apis_evaluate_the_average_that_a_stage_keeps():
    one, two, _ = run(3, {"evaluation": Evaluation(), "stages": [MovingAverage(0.9)]})
    assert {key: value for key, value in one.log.evaluate.items() if key != "loss"} == two.log.evaluate
