"""The arguments of the classic FedAvg do here what they do there; and what Flower puts around a strategy."""

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow, SecAggWorkflow

from heterofl_flwr import LocalGrid
from heterofl_flwr.classic import HeteroFL
from heterofl_flwr.errors import ConfigError
from tests.classic import numpy_clients
from tests.classic.fakes import Fake, evaluate_all, fit_all, manager_of
from tests.federation.tiny import build


def both(number=5, ours=None, **options):
    """Return Flower's strategy and ours of one full-size level, and a manager of the same clients for each."""
    for strategy in (FedAvg(**options), HeteroFL(build, "a1", wait=0.0, **options)):
        manager = manager_of(*(Fake(str(cid), 1.0 + cid, metrics={"loss": cid}) for cid in range(number)))
        parameters = HeteroFL(build, "a1").initialize_parameters(client_manager=manager)
        yield strategy, manager, parameters


def rounds(strategy, manager, parameters, number=2):
    """Return, for each round, how many were asked and the metrics."""
    found = []
    for server_round in range(1, number + 1):
        sent = strategy.configure_fit(server_round, parameters, manager)
        for _, ins in sent:
            ins.config["task"] = "train"
        parameters, fitted = strategy.aggregate_fit(server_round, fit_all(sent), [])
        asked = strategy.configure_evaluate(server_round, parameters, manager)
        for _, ins in asked:
            ins.config["task"] = "evaluate"
        found.append(
            (len(sent), fitted, len(asked), strategy.aggregate_evaluate(server_round, evaluate_all(asked), []))
        )
    return found


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
    theirs, ours = [rounds(*one) for one in both(**options)]
    assert seen[:4] == seen[4:]
    assert ours == theirs
    assert ours[1][1] == {"largest": 5, "name": "of examples"}


def test_failures_that_are_not_accepted_leave_the_model_as_it_is():
    for strategy, manager, parameters in both(accept_failures=False):
        for server_round in (1, 2):
            sent = strategy.configure_fit(server_round, parameters, manager)
            for _, ins in sent:
                ins.config["task"] = "train"
            results, failures = fit_all(sent), []
            if server_round == 1:
                results, failures = results[1:], [ConnectionError("gone")]
            new, metrics = strategy.aggregate_fit(server_round, results, failures)
            assert ((new, metrics) == (None, {})) == (server_round == 1)
        assert strategy.aggregate_evaluate(2, [], [ConnectionError("gone")]) == (None, {})


@pytest.mark.parametrize("key", ["task", "rate", "seed"])
def test_a_users_config_cannot_have_keys_of_ours(key):
    strategy = HeteroFL(build, "a1", on_fit_config_fn=lambda server_round: {"lr": 0.1, key: 1})
    manager = manager_of(Fake("0", 1.0), Fake("1", 1.0))
    with pytest.raises(ConfigError, match=f"has {key}: .* choose another name, as my-{key}"):
        strategy.configure_fit(1, strategy.initialize_parameters(manager), manager)


@pytest.mark.parametrize("workflow", [SecAggPlusWorkflow(3, 2), SecAggWorkflow(2)])
def test_secure_aggregation_fails_where_clients_train_slices(workflow):
    app = ClientApp(client_fn=numpy_clients.client_fn, mods=[secaggplus_mod])
    with LocalGrid(app, 3) as grid:
        context = LegacyContext(
            Context(grid.run.run_id, 0, {}, RecordDict(), {}),
            config=ServerConfig(num_rounds=1),
            strategy=HeteroFL(numpy_clients.build, "a1-c1"),
        )
        with pytest.raises(ValueError, match="operands could not be broadcast together"):
            DefaultWorkflow(fit_workflow=workflow)(grid, context)


def test_secure_aggregation_of_one_size_is_the_mean():
    found = []
    for workflow in (None, SecAggPlusWorkflow(3, 2, quantization_range=2**20, modulus_range=2**30)):
        app = ClientApp(client_fn=numpy_clients.client_fn, mods=[secaggplus_mod] if workflow else [])
        strategy = HeteroFL(numpy_clients.build, "a1", weights="examples", labels="none", fraction_evaluate=0.0)
        with LocalGrid(app, 3) as grid:
            context = LegacyContext(
                Context(grid.run.run_id, 0, {}, RecordDict(), {}), config=ServerConfig(num_rounds=1), strategy=strategy
            )
            DefaultWorkflow(fit_workflow=workflow)(grid, context)
        assert strategy.log.failures == {}
        found.append(context.state.array_records["parameters"].to_numpy_ndarrays())
    for plain, masked in zip(*found, strict=True):
        np.testing.assert_allclose(masked, plain, atol=2e-3)  # SecAgg+ rounds weights to thousandths
