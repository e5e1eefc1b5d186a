"""Under Flower's own secure aggregation, which wants replies of one shape, and with apps as they were."""

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow, SecAggWorkflow

from heterofl_flwr import LocalGrid
from heterofl_flwr.classic import HeteroFL
from tests.classic.digits_clients import build, client_fn
from tests.classic.fakes import Fake, fit_all, manager_of
from tests.federation import tiny


@pytest.mark.parametrize("workflow", [SecAggPlusWorkflow(3, 2), SecAggWorkflow(2)])
def test_secure_aggregation_fails_where_clients_train_slices(workflow):
    app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
    with LocalGrid(app, 3) as grid:
        context = LegacyContext(
            Context(grid.run.run_id, 0, {}, RecordDict(), {}),
            config=ServerConfig(num_rounds=1),
            strategy=HeteroFL(build, "a1-c1"),
        )
        with pytest.raises(ValueError, match="operands could not be broadcast together"):
            DefaultWorkflow(fit_workflow=workflow)(grid, context)


def test_a_client_that_is_not_converted_is_refused_with_this_cause():
    strategy = HeteroFL(tiny.build, "a1-c1", wait=0.0)
    manager = manager_of(*(Fake(str(cid), 1.0 + cid) for cid in range(2)))
    parameters = strategy.initialize_parameters(client_manager=manager)
    results = fit_all(strategy.configure_fit(1, parameters, manager))
    whole = [np.asarray(tensor) for tensor in tiny.build(1.0).state_dict().values()]
    results[1] = (results[1][0], FitRes(Status(Code.OK, ""), ndarrays_to_parameters(whole), 1, {}))
    strategy.aggregate_fit(1, results, [])
    assert "its ClientApp is not converted" in strategy.log.failures[1]
    assert "in a NumPyClient properties_of, submodel and parameters_of" in strategy.log.failures[1]
