"""Hostile nodes of a SuperLink with TLS: what must be refused leaves the model as when these nodes are silent."""

import sys
from itertools import product

import pytest

from heterofl_flwr.app import server_app
from heterofl_flwr.app.launch.request import CLIENT_APP
from heterofl_flwr.app.task import load_task
from heterofl_flwr.federation.round import SILENT
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import from_flat, to_flat
from tests.deployment.crowd import AGAIN
from tests.deployment.processes import Deployment
from tests.faults.runs import Grid, models_of
from tests.federation.tiny import equal

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

ATTACKS = ["objects withheld", "a config that never closes", "one chunk many times", AGAIN]
NODES = 1 + len(ATTACKS)
DEADLINE, LONGEST = 30.0, 1200.0
# Flower starts a process for each message to the good node: here for two instructions to train, and a query.
SETTINGS = {
    "mix": "a1-b1-e1",
    "assignment": "fix",
    "num-rounds": 2,
    "model.name": "cnn",
    "model.hidden": "8,16",
    "model.norm": "none",
    "train.epochs": 2,
    "train.labels": "sent",
    "engine.name": "plain",  # the same bits everywhere
    "engine.timeout": DEADLINE,
    "evaluate.central": False,
    "evaluate.every": 0,
    "sample.fraction": 1.0,
    "sample.min-nodes": NODES,
    "sample.min-replies": 1,
    "sample.wait": LONGEST,
    "run.callbacks": "",
}


def test_they_leave_the_model_as_when_they_are_silent(tmp_path):
    run, silent = (to_flat(from_flat({**SETTINGS, "run.dir": str(tmp_path / name)})) for name in ("run", "silent"))
    with Deployment(tmp_path, {"OMP_NUM_THREADS": "1"}) as deployment:
        deployment.start_superlink()
        deployment.register(*(f"node-{number}" for number in range(NODES)))
        deployment.start_node("node-0", f'level="a" partition-id=0 num-partitions={NODES}')
        address = f"127.0.0.1:{deployment.port}"
        deployment.popen(
            [sys.executable, "-m", "tests.deployment.crowd", address, str(deployment.keys), ",".join(ATTACKS)], "crowd"
        )
        assert deployment.status(deployment.submit(run), LONGEST) == "finished:completed"
    history = RunFolder(tmp_path / "run").history()
    failures = {(own, record.server_round): why for record in history for own, why in record.failures.items()}
    config = [{"level": "abe"[number % 3]} for number in range(NODES)]
    with Grid(CLIENT_APP, NODES, run_config=silent, node_config=config.__getitem__) as grid:
        grid.missing = failures.keys()
        server_app.run(grid, load_task(silent))
    assert equal(models_of(tmp_path / "run"), models_of(tmp_path / "silent"))
    assert {*product((1, 2, 3), (1, 2)), (4, 2)} <= failures.keys()
    assert {(own, number) for (own, number), why in failures.items() if why != SILENT} == {*product((2, 3), (1, 2))}
    assert history[1].seconds < DEADLINE + 5  # the first one waits for nodes
