"""Runs through a SuperLink whose connections are slow, or cut: the model is that of the replies that counted.

Node 1 is slow in all rounds. In round 2 node 0 is cut off for 30 seconds, in round 3 all are for 20 seconds, and from
the end of round 3 to that of round 4 node 2 is. What each fault costs depends on the machine; the history says it.
A replay in this process, without the replies and nodes that the history names as lost, gives the same model.
"""

import time
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import server_app
from heterofl_flwr.app.workload import Workload
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.flat import from_flat
from tests.deployment.lab import LONGEST, SMALL, Lab
from tests.deployment.proxy import Proxy

pytestmark = [pytest.mark.deployment, pytest.mark.release]

NODES, ROUNDS, LOST = 3, 5, 4
CONFIG = {
    **SMALL,
    "mix": "a1-b1-c1",
    "num-rounds": ROUNDS,
    "sample.fraction": 1.0,
    "sample.min-nodes": 2,
    "sample.min-replies": 1,
    "engine.timeout": 150.0,
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut-nodes")
    run = RunFolder(folder / "cut")
    with ExitStack() as stack:
        proxies = []

        def through(number, port):
            slow = {"delay": 0.2, "rate": 200_000.0} if number == 1 else {}
            proxies.append(stack.enter_context(Proxy(port, **slow)))
            return proxies[-1].port

        lab = stack.enter_context(Lab(folder, {"OMP_NUM_THREADS": "1"}))
        lab.prepare(NODES, through)
        app = lab.start("cut", CONFIG)

        def wait(happened, what):
            lab.wait_for(lambda: happened() or app.poll() is not None, what, LONGEST)

        for server_round, cut, seconds in ((2, [0], 30.0), (3, [0, 1, 2], 20.0)):
            wait(lambda first=cut[0], number=server_round: lab.received(first, "train") >= number, "a message")
            for number in cut:
                proxies[number].cut()
            time.sleep(seconds)
            for number in cut:
                proxies[number].heal()
        wait(lambda: len(run.history()) >= LOST - 1, "the end of a round")  # a client process takes seconds to answer
        proxies[2].cut()
        wait(lambda: len(run.history()) >= LOST, "the end of a round")
        proxies[2].heal()
        app.wait(LONGEST)
        log = lab.log("cut") + lab.log("superlink")
    return run, log


def test_each_round_is_there_once_and_each_loss_has_a_line_with_a_name(ended):
    run, log = ended
    history = run.history()
    assert [record.server_round for record in history] == list(range(1, ROUNDS + 1)), log[-9000:]
    for record in history:
        assert record.answered == len(record.rates) - len(record.failures)
        for partition in record.failures:
            assert f"round {record.server_round}: node-{partition} at rate" in log
        for partition in set(range(NODES)) - record.rates.keys():
            assert any(f"node-{partition}" in note for note in record.notes)
    assert 1 in history[-1].rates  # however slow its connection is
    lost = history[LOST - 1]
    assert 2 in lost.failures or 2 not in lost.rates


class Replay(LocalGrid):
    """Nodes in this process; what a history names as lost is lost."""

    history = ()
    server_round = 1

    def get_node_ids(self):
        there = self.history[min(self.server_round, ROUNDS) - 1].rates if self.history else range(NODES)
        return [node_id for number, node_id in enumerate(super().get_node_ids()) if number in there]

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        ids = list(super().get_node_ids())
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if messages[0].metadata.message_type != "train":
            return replies
        lost = {ids[partition] for partition in self.history[self.server_round - 1].failures}
        self.server_round += 1
        return [reply for reply in replies if reply.metadata.src_node_id not in lost]


def test_the_model_is_that_of_a_replay_without_what_was_lost(ended, tmp_path):
    run, _ = ended
    config = {**CONFIG, "run.dir": str(tmp_path / "replay"), "sample.wait": 1.0}
    parts = {"num-partitions": NODES}
    with Replay(
        "heterofl_flwr.app.client_app:app",
        NODES,
        run_config=config,
        node_config=lambda number: {"partition-id": number, **parts},
    ) as grid:
        grid.history = run.history()
        server_app.run(grid, Workload(from_flat(config)))
    for level in "abc":
        cut, replay = (load_file(path / "models" / f"{level}.safetensors") for path in (run.path, tmp_path / "replay"))
        assert cut.keys() == replay.keys()
        assert all(torch.equal(cut[name], replay[name]) for name in cut)
