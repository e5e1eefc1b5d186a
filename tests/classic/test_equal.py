"""Beside the Message API, the same model bit for bit; beside the classic FedAvg, the same for the same arguments."""

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import parameters_to_ndarrays
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import ServerApp

import heterofl_flwr
from heterofl_flwr import Adam, Averaging, Evaluation, LocalGrid, MovingAverage, Sampling, classic
from heterofl_flwr.classic import HeteroFL
from heterofl_flwr.common.errors import ConfigError
from tests.classic import numpy_clients
from tests.classic.fakes import Fake, evaluate_all, fit_all, manager_of
from tests.classic.numpy_clients import classic_app, message_app
from tests.federation.grouped import grouped
from tests.federation.tiny import build

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
    one, two = (
        Kept(numpy_clients.build, MIX, num_rounds=num_rounds, **grouped(named)),
        heterofl_flwr.HeteroFL(numpy_clients.build, MIX, **grouped(options)),
    )
    parts = ServerAppComponents(strategy=one, config=ServerConfig(num_rounds=num_rounds))
    with LocalGrid(classic_app, NODES) as grid:
        ServerApp(server_fn=lambda context: parts)(grid, Context(grid.run.run_id, 1, {}, RecordDict(), {}))
    with LocalGrid(message_app, NODES) as grid:
        return one, two, two.start(grid, num_rounds=num_rounds).arrays.to_torch_state_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"evaluation": Evaluation(every=2, levels=True)},
        pytest.param({"evaluation": Evaluation(every=2), "shared": ("hidden.*",)}, marks=pytest.mark.slow),
        pytest.param({"evaluation": Evaluation(every=0), **MOVING}, marks=pytest.mark.slow),
    ],
)
def test_both_apis_give_the_same_model_after_two_rounds(options):
    one, two, state = run(2, options)
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
    one, two, _ = run(2, {"evaluation": Evaluation(), "stages": [MovingAverage(0.9)]})
    assert {key: value for key, value in one.log.evaluate.items() if key != "loss"} == two.log.evaluate


def both(number=5, ours=None, **options):
    """Return Flower's strategy and ours of one full-size level, and a manager of the same clients for each."""
    for strategy in (FedAvg(**options), HeteroFL(build, "a1", sampling=Sampling(wait=0.0), **grouped(options))):
        manager = manager_of(*(Fake(str(cid), 1.0 + cid, metrics={"loss": cid}) for cid in range(number)))
        parameters = HeteroFL(build, "a1").initialize_parameters(client_manager=manager)
        yield strategy, manager, parameters


def rounds(strategy, manager, parameters, number=2):
    """Yield, for each round, how many were asked and the metrics."""
    for server_round in range(1, number + 1):
        sent = strategy.configure_fit(server_round, parameters, manager)
        parameters, fitted = strategy.aggregate_fit(server_round, fit_all(sent), [])
        asked = strategy.configure_evaluate(server_round, parameters, manager)
        yield len(sent), fitted, len(asked), strategy.aggregate_evaluate(server_round, evaluate_all(asked), [])


@pytest.mark.parametrize(("fraction", "least"), [(0.5, 2), (0.2, 4), (0.3, 1), (1.0, 3)])
def test_fractions_and_least_numbers_are_fedavgs(fraction, least):
    options = {"fraction_fit": fraction, "min_fit_clients": least, "min_evaluate_clients": least + 1}
    options |= {"fraction_evaluate": fraction, "min_available_clients": 5}
    theirs, ours = [[(sent, asked) for sent, _, asked, _ in rounds(*one)] for one in both(**options)]
    assert ours == theirs


def test_metrics_functions_get_what_flower_gives_them():
    seen = []

    def largest(answers):
        seen.append(sorted((number, sorted(metrics.items())) for number, metrics in answers))
        return {"largest": max(number for number, _ in answers), "name": "of examples"}

    options = {"fit_metrics_aggregation_fn": largest, "evaluate_metrics_aggregation_fn": largest}
    theirs, ours = [list(rounds(*one)) for one in both(**options)]
    assert seen[:4] == seen[4:]
    assert ours == theirs
    assert ours[1][1] == {"largest": 5, "name": "of examples"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("callbacks", ()), ("asynchronous", ()), ("training.upload", "int8"), ("sampling.spare", 0.5)),
        *(("slicing.by_level", ["hidden.*"]), ("resume", None), ("should_stop", None)),
    ],
)
def test_what_the_classic_api_has_no_place_for_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"the classic API has no place for {name}; use heterofl_flwr.HeteroFL"):
        HeteroFL(build, **grouped({name.rpartition(".")[2]: value}))


@pytest.mark.parametrize("key", ["task", "rate", "seed"])
def test_a_users_config_cannot_have_keys_of_ours(key):
    strategy = HeteroFL(build, "a1", on_fit_config_fn=lambda server_round: {"lr": 0.1, key: 1})
    manager = manager_of(Fake("0", 1.0), Fake("1", 1.0))
    with pytest.raises(ConfigError, match=f"has {key}, .* choose another name, such as my-{key}"):
        strategy.configure_fit(1, strategy.initialize_parameters(manager), manager)


def test_secure_aggregation_of_one_size_is_the_mean():
    found = []
    for workflow in (None, SecAggPlusWorkflow(3, 2, quantization_range=2**20, modulus_range=2**30)):
        app = ClientApp(client_fn=numpy_clients.client_fn, mods=[secaggplus_mod] if workflow else [])
        strategy = HeteroFL(
            numpy_clients.build, "a1", averaging=Averaging(weights="examples", labels="none"), fraction_evaluate=0.0
        )
        with LocalGrid(app, 3) as grid:
            context = LegacyContext(
                Context(grid.run.run_id, 0, {}, RecordDict(), {}), config=ServerConfig(num_rounds=1), strategy=strategy
            )
            DefaultWorkflow(fit_workflow=workflow)(grid, context)
        assert strategy.log.failures == {}
        found.append(context.state.array_records["parameters"].to_numpy_ndarrays())
    for plain, masked in zip(*found, strict=True):
        np.testing.assert_allclose(masked, plain, atol=2e-3)  # SecAgg+ rounds weights to thousandths
