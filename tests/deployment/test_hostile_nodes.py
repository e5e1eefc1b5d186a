"""Hostile nodes of a SuperLink with TLS: what must be refused leaves the model as when these nodes are silent."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import server_app
from heterofl_flwr.app.launch.request import CLIENT_APP
from heterofl_flwr.app.task import load_task
from heterofl_flwr.federation.round import SILENT
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import from_flat, to_flat
from tests.deployment.crowd import AGAIN
from tests.deployment.processes import Deployment

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


class Silent(LocalGrid):
    """A grid whose nodes, but the first, do not answer instructions to train; the last one does in round 1."""

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        if messages[0].metadata.message_type != "train":
            return replies
        good, *_, last = self.get_node_ids()
        heard = {good, last} if messages[0].content["config"]["server-round"] == 1 else {good}
        return [reply for reply in replies if reply.metadata.src_node_id in heard]


def test_they_leave_the_model_as_when_they_are_silent(tmp_path):
    run, silent = (to_flat(from_flat({**SETTINGS, "run.dir": str(tmp_path / name)})) for name in ("run", "silent"))
    with Deployment(tmp_path, {"OMP_NUM_THREADS": "1"}) as deployment:
        deployment.database = ":flwr-in-memory:"  # one on a busy disk is locked for seconds when a node announces much
        deployment.start_superlink()
        deployment.register(*(f"node-{number}" for number in range(NODES)))
        deployment.start_node("node-0", f'level="a" partition-id=0 num-partitions={NODES}')
        address = f"127.0.0.1:{deployment.port}"
        deployment.popen(
            [sys.executable, "-m", "tests.deployment.crowd", address, str(deployment.keys), ",".join(ATTACKS)], "crowd"
        )
        status, details = deployment.wait_for_end(deployment.submit(run), LONGEST)
    assert status == "finished:completed", details
    config = [{"level": "abe"[number % 3]} for number in range(NODES)]
    with Silent(CLIENT_APP, NODES, run_config=silent, node_config=config.__getitem__) as grid:
        server_app.run(grid, load_task(silent))
    for level in "abe":
        found, expected = (load_file(tmp_path / name / "models" / f"{level}.safetensors") for name in ("run", "silent"))
        assert all(torch.equal(own, expected[name]) for name, own in found.items())
    history = RunFolder(tmp_path / "run").history()
    assert [set(record.failures) for record in history] == [{1, 2, 3}, {1, 2, 3, 4}]
    silent = [{number for number, reason in record.failures.items() if reason == SILENT} for record in history]
    assert silent == [{1}, {1, 4}]
    assert history[1].seconds < DEADLINE + 5  # the first one waits for nodes
