"""Run the sample app on Flower's simulation engine; write its model: ``python -m tests.federation.simulate FILE``."""

import sys

import numpy as np
from flwr.serverapp import ServerApp

from heterofl_flwr import Evaluation, HeteroFL
from tests.federation.digits_app import app, build

NODES = 5
ROUNDS = 3


def strategy() -> HeteroFL:
    return HeteroFL(
        build,
        "a1-b1-c1-d1-e1",
        server_momentum=0.5,
        min_available_nodes=NODES,
        evaluation=Evaluation(every=2, levels=True),
    )


def simulate() -> dict[str, np.ndarray]:
    """Return the global model after a run in two of Ray's actors."""
    from flwr.simulation import run_simulation  # it brings Ray, and the tests import this module too

    kept = {}
    server = ServerApp()

    @server.main()
    def _(grid, context):
        own = strategy()
        arrays = own.start(grid, num_rounds=ROUNDS).arrays.to_torch_state_dict()
        kept.update({name: tensor.numpy() for name, tensor in arrays.items()}, rates=np.array(list(own.log.rates)))

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server, app, NODES, backend_config=resources)
    return kept


if __name__ == "__main__":
    np.savez(sys.argv[1], **simulate())
