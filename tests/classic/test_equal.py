"""Both of Flower's APIs, one core: equal seeds give the same global model, bit for bit."""

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.common import Context, parameters_to_ndarrays

import heterofl_flwr
from heterofl_flwr import Adam, Evaluation, LocalGrid
from heterofl_flwr.classic import HeteroFL
from heterofl_flwr.stages.moving_average import MovingAverage
from tests.classic import digits_clients
from tests.classic.digits_clients import Kept
from tests.federation import digits_app

NODES = 6


def classic(num_rounds, options):
    strategy = Kept(digits_app.build, "a1-b1-c1-d1-e1", num_rounds=num_rounds, **options)
    with LocalGrid(digits_clients.app, NODES) as grid:
        server = digits_clients.make_server(strategy, num_rounds)
        server(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {}))
    return strategy


def message(num_rounds, options):
    strategy = heterofl_flwr.HeteroFL(digits_app.build, "a1-b1-c1-d1-e1", **options)
    with LocalGrid(digits_app.app, NODES) as grid:
        return strategy, strategy.start(grid, num_rounds=num_rounds)


@pytest.mark.parametrize(
    "options",
    [
        {"evaluation": Evaluation(every=4, levels=True)},
        {
            "assignment": "dynamic",
            "slice_rule": "rolling",
            "fraction_train": 0.5,
            "stages": [Adam(eta=1e-2)],
            "seed": 3,
            "evaluation": Evaluation(every=0),
        },
    ],
    ids=["fix", "dynamic"],
)
def test_both_apis_give_the_same_model_after_five_rounds(options):
    one = classic(5, options)
    two, result = message(5, options)
    state = result.arrays.to_torch_state_dict()
    for array, (name, tensor) in zip(parameters_to_ndarrays(one.last), state.items(), strict=True):
        np.testing.assert_array_equal(array, tensor.numpy(), err_msg=name)
    assert one.log.rates == two.log.rates
    assert one.log.train == two.log.train
    assert one.log.train_by_level == two.log.train_by_level
    assert one.log.evaluate_by_level == two.log.evaluate_by_level
    if options["evaluation"].every:
        mine = {key: value for key, value in one.log.evaluate.items() if key != "loss"}
        assert mine == two.log.evaluate
        assert mine["local-accuracy"] > 0.6
        assert one.loss == pytest.approx(1 - mine["local-accuracy"])


def test_clients_that_raise_end_the_run_with_their_cause():
    class Broken(digits_clients.Client):
        def fit(self, parameters, config):
            raise RuntimeError("the disk is full")

    app = digits_clients.ClientApp(client_fn=lambda context: Broken(context).to_client())
    server = digits_clients.make_server(HeteroFL(digits_app.build), 1)
    with (
        LocalGrid(app, 2) as grid,
        pytest.raises(heterofl_flwr.HeteroFLError, match=r"0 of 2 clients .*the disk is full"),
    ):
        server(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {}))


def test_both_apis_evaluate_the_average_that_a_stage_keeps():
    options = {"evaluation": Evaluation(), "stages": [MovingAverage(0.9)]}
    one, (two, _) = classic(3, options), message(3, options)
    assert {key: value for key, value in one.log.evaluate.items() if key != "loss"} == two.log.evaluate
