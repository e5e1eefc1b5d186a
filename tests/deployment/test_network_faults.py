"""Runs of three nodes through a SuperLink, each with another fault: the model is that of the replies that counted.

Node 1 is slow in all runs. A fault begins when round 2 trains; what it costs depends on the machine, and the history
says it. A replay in this process, without the replies and nodes that the history names as lost, gives the same model.
"""

import os
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest

from heterofl_flwr.report import RunFolder
from tests.deployment.lab import LONGEST, SMALL, Lab
from tests.deployment.proxy import Proxy
from tests.deployment.replay import check

pytestmark = [pytest.mark.deployment, pytest.mark.release]

NODES, ROUNDS = 3, 3
SECONDS = 30.0
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

        def through(number, port):
            slow = {"delay": 0.2, "rate": 200_000.0} if number == 1 else {}
            lab.proxies.append(stack.enter_context(Proxy(port, **slow)))
            return lab.proxies[-1].port

        for disk in ("database", "disk-full"):
            (folder / disk).mkdir()
            if not subprocess.call(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder / disk]):
                stack.callback(subprocess.check_call, ["umount", "-l", folder / disk])
        lab = stack.enter_context(Lab(folder))
        lab.prepare(NODES, through, "--database", str(folder / "database" / "superlink.db"))
        yield lab


@contextmanager
def disturbed(lab, name, value):
    for proxy in lab.proxies:
        setattr(proxy, name, value)
    yield
    for proxy in lab.proxies:
        setattr(proxy, name, type(value)())


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


FAULTS = {
    "lossy": partial(disturbed, name="loss", value=0.05),
    "deaf": partial(disturbed, name="deaf", value=True),
    "cut-node": lambda lab: lab.cut([0]),
    "cut-superlink": lambda lab: lab.cut(range(NODES)),
    "frozen-superlink": lambda lab: lab.frozen([lab.superlink.pid]),
    "leaves-and-joins": lambda lab: lab.killed_node(2),  # and then the lab starts it again
    "killed-serverapp": Lab.killed_serverapp,
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
    check(RunFolder(lab.folder / name), CONFIG, NODES, finish(lab, name, CONFIG), tmp_path)
