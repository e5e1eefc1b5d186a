"""Runs of three nodes through a SuperLink, each with another fault: the model is that of the replies that counted.

Node 1 is slow in all runs. A fault begins when round 2 trains; what it costs depends on the machine, and the history
says it. A replay in this process, without the replies and nodes that the history names as lost, gives the same model.
"""

import os
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from heterofl_flwr import LocalGrid
from heterofl_flwr.app import server_app
from heterofl_flwr.app.workload import Workload
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.flat import from_flat
from tests.deployment.lab import LONGEST, SMALL, Lab
from tests.deployment.processes import kill
from tests.deployment.proxy import Proxy

pytestmark = [pytest.mark.deployment, pytest.mark.release]

NODES, ROUNDS = 3, 3
SECONDS = 20.0
"""How long a fault lasts."""

CONFIG = {
    **SMALL,
    "mix": "a1-b1-c1",
    "num-rounds": ROUNDS,
    "sample.fraction": 1.0,
    "sample.min-nodes": 2,
    "sample.min-replies": 1,
    "engine.timeout": 90.0,
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    with ExitStack() as stack:
        proxies = []

        def through(number, port):
            slow = {"delay": 0.2, "rate": 200_000.0} if number == 1 else {}
            proxies.append(stack.enter_context(Proxy(port, **slow)))
            return proxies[-1].port

        for disk in ("database", "disk-full"):
            (folder / disk).mkdir()
            if not subprocess.call(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder / disk]):
                stack.callback(subprocess.check_call, ["umount", "-l", folder / disk])
        lab = stack.enter_context(Lab(folder, {"OMP_NUM_THREADS": "1"}))
        lab.prepare(NODES, through, "--database", str(folder / "database" / "superlink.db"))
        lab.proxies = proxies
        yield lab


@contextmanager
def cut(lab, *numbers):
    for number in numbers:
        lab.proxies[number].cut()
    yield
    for number in numbers:
        lab.proxies[number].heal()


@contextmanager
def disturbed(lab, name, value):
    for proxy in lab.proxies:
        setattr(proxy, name, value)
    yield
    for proxy in lab.proxies:
        setattr(proxy, name, type(value)())


@contextmanager
def frozen(lab):
    lab.superlink.send_signal(signal.SIGSTOP)
    yield
    lab.superlink.send_signal(signal.SIGCONT)


@contextmanager
def full(lab, disk):
    if not os.path.ismount(lab.folder / disk):
        pytest.skip("needs root, for a disk of its own")
    filling = lab.folder / disk / "filling"
    with suppress(OSError), filling.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield
    filling.unlink()


@contextmanager
def unplugged(lab, number):
    kill(lab.nodes[number])
    yield  # and then the lab starts it again


@contextmanager
def killed(lab):
    for number in lab.numbers_of("flwr-serverapp"):
        os.kill(number, signal.SIGKILL)
    kill(lab.app)
    yield


FAULTS = {
    "lossy": partial(disturbed, name="loss", value=0.05),
    "deaf": partial(disturbed, name="deaf", value=True),
    "cut-node": lambda lab: cut(lab, 0),
    "cut-superlink": lambda lab: cut(lab, 0, 1, 2),
    "frozen-superlink": frozen,
    "leaves-and-joins": partial(unplugged, number=2),
    "killed-serverapp": killed,
    "disk-full": lambda lab: full(lab, "disk-full"),
    "database-full": lambda lab: full(lab, "database"),
}


def finish(lab, name, config, log=""):
    """Wait for the end of a run, and resume it until it has all its rounds; return its log."""
    run = RunFolder(lab.folder / name)
    for _ in range(3):
        lab.wait_for_end()
        log += lab.recent_log(name) + lab.recent_log("superlink")
        if (run.path / "models" / "a.safetensors").exists():
            break
        lab.start(name, {**config, "run.resume": True})
    return log


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_the_replies_that_the_log_names_as_lost(lab, tmp_path, name):
    app = lab.start(name, CONFIG)
    lab.wait_for(
        lambda: sum(lab.received(number, "train") for number in range(NODES)) > NODES or app.poll() is not None,
        "round 2",
        LONGEST,
    )
    with FAULTS[name](lab):
        time.sleep(SECONDS)
    check(lab, name, CONFIG, finish(lab, name, CONFIG), tmp_path)


def check(lab, name, config, log, folder):
    """Check the history of a run, the names in its log, and that a replay has the same models."""
    run = RunFolder(lab.folder / name)
    history = run.history()
    assert [record.server_round for record in history] == list(range(1, config["num-rounds"] + 1)), log[-9000:]
    for record in history:
        assert record.answered == len(record.rates) - len(record.failures)
        for partition in record.failures:
            assert f"round {record.server_round}: node-{partition} at rate" in log
        for partition in set(range(NODES)) - record.rates.keys():
            assert any(f"node-{partition}" in note for note in record.notes)
    settings = {**config, "run.dir": str(folder / "replay"), "sample.wait": 1.0}
    nodes = {"run_config": settings, "node_config": lambda own: {"partition-id": own, "num-partitions": NODES}}
    with Replay("heterofl_flwr.app.client_app:app", NODES, **nodes) as grid:
        grid.history = history
        server_app.run(grid, Workload(from_flat(settings)))
    for level in "abc":
        models = [load_file(path / "models" / f"{level}.safetensors") for path in (run.path, folder / "replay")]
        assert models[0].keys() == models[1].keys()
        assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


class Replay(LocalGrid):
    """Nodes in this process; what a history names as lost is lost."""

    history = ()
    server_round = 1

    def get_node_ids(self):
        there = self.history[min(self.server_round, len(self.history)) - 1].rates if self.history else range(NODES)
        return [node_id for number, node_id in enumerate(super().get_node_ids()) if number in there]

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        ids = list(super().get_node_ids())
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if not messages or messages[0].metadata.message_type != "train":
            return replies
        lost = {ids[partition] for partition in self.history[self.server_round - 1].failures}
        self.server_round += 1
        return [reply for reply in replies if reply.metadata.src_node_id not in lost]
