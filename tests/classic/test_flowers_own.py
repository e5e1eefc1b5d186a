"""Under Flower's own classic wrappers and workflows, which want replies of one shape, and with apps as they were."""

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow, SecAggWorkflow

from heterofl_flwr import LocalGrid
from heterofl_flwr.classic import HeteroFL
from heterofl_flwr.errors import ConfigError
from tests.classic.digits_clients import app, build
from tests.classic.fakes import Fake, fit_all, manager_of
from tests.federation import tiny


@pytest.mark.parametrize(
    ("wrapper", "numbers"),
    [
        (DifferentialPrivacyServerSideFixedClipping, {"noise_multiplier": 0.0, "clipping_norm": 1.0}),
        (DifferentialPrivacyServerSideAdaptiveClipping, {"noise_multiplier": 0.0}),
    ],
)
def test_clipping_on_the_server_refuses_slices_and_names_what_to_use(wrapper, numbers):
    manager = manager_of(*(Fake(str(cid), 1.0 + cid) for cid in range(2)))
    for mix in ("a1", "a1-c1"):
        strategy = wrapper(HeteroFL(tiny.build, mix, wait=0.0), num_sampled_clients=2, **numbers)
        parameters = strategy.initialize_parameters(client_manager=manager)
        if mix == "a1":
            assert len(strategy.configure_fit(1, parameters, manager)) == 2
        else:
            with pytest.raises(ConfigError, match=r"compares each reply .*privacy=Privacy\(clip="):
                strategy.configure_fit(1, parameters, manager)


@pytest.mark.parametrize("workflow", [SecAggPlusWorkflow(3, 2), SecAggWorkflow(2)])
def test_secure_aggregation_refuses_slices_and_names_what_to_use(workflow):
    with LocalGrid(app, 3) as grid:
        context = LegacyContext(
            Context(grid.run.run_id, 0, {}, RecordDict(), {}),
            config=ServerConfig(num_rounds=1),
            strategy=HeteroFL(build, "a1-c1"),
        )
        with pytest.raises(ConfigError, match="SecAggPlusWorkflow adds up masked replies of one shape"):
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
