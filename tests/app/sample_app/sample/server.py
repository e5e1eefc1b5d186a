"""A ServerApp with Flower's FedAvg."""

import time
from logging import getLogger

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

logger = getLogger("flwr")
app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    logger.info("note: %s", config["note.text"])
    if config["fault"] == "server":
        raise RuntimeError("the server's own fault")
    while len(list(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    start = ArrayRecord({"w": Array(np.zeros(4, np.float32))})
    result = FedAvg(fraction_evaluate=0).start(grid, start, num_rounds=config["rounds"])
    logger.info("result: %d", len(result.arrays))
    if config["fault"] == "hangs":
        for _ in range(6000):  # a signal that comes right before a sleep does not end it
            time.sleep(0.1)
