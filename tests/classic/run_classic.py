"""Run the sample clients under one of Flower's old entry points: ``python -m tests.classic.run_classic KIND FILE``.

What brings Ray is imported late: the tests import this module too.
"""

import socket
import subprocess
import sys

import numpy as np
import torch
from flwr.common import Context, RecordDict, parameters_to_ndarrays
from flwr.server import ServerConfig

from heterofl_flwr import Evaluation
from tests.classic.digits_clients import Client, Kept, build, client_fn

NODES = 3
ROUNDS = 2
OPTIONS = {"min_available_nodes": NODES, "evaluation": Evaluation(levels=True), "wait": 300.0}


def strategy() -> Kept:
    return Kept(build, "a1-c1-e1", **OPTIONS)


def simulated() -> Kept:
    """``start_simulation``."""
    import ray
    from flwr.simulation import start_simulation

    own = strategy()
    start_simulation(
        client_fn=client_fn,
        num_clients=NODES,
        config=ServerConfig(num_rounds=ROUNDS),
        strategy=own,
        client_resources={"num_cpus": 1, "num_gpus": 0.0},
        ray_init_args={"num_cpus": 2, "include_dashboard": False},
    )
    ray.shutdown()
    return own


def served() -> Kept:
    """``start_server`` and three processes with ``start_client``, over gRPC on a free port of this machine."""
    from flwr.server import start_server

    own = strategy()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.classic.run_classic", "client", address]
    clients = [subprocess.Popen([*command, str(partition)]) for partition in range(NODES)]
    try:
        start_server(server_address=address, config=ServerConfig(num_rounds=ROUNDS), strategy=own)
    finally:
        for client in clients:
            try:
                client.wait(120)
            except subprocess.TimeoutExpired:
                client.kill()
    return own


def client(address: str, partition: int) -> None:
    """Be one client."""
    from flwr.client import start_client

    torch.set_num_threads(1)
    node = Context(1, partition, {"partition-id": partition, "num-partitions": NODES}, RecordDict(), {})
    start_client(server_address=address, client=Client(node).to_client(), insecure=True, max_wait_time=300)


if __name__ == "__main__" and sys.argv[1] == "client":
    client(sys.argv[2], int(sys.argv[3]))
elif __name__ == "__main__":
    run = {"simulated": simulated, "served": served}[sys.argv[1]]()
    arrays, rates = parameters_to_ndarrays(run.last), sorted(run.log.rates.items())
    np.savez(sys.argv[2], *arrays, accuracy=run.metrics["local-accuracy"], rates=np.array(rates))
