"""Secure aggregation through a SuperLink with TLS and known nodes, of which one is killed in each round.

The SuperLink takes a minute or more to notice that a node is gone, so by default there is one round, in which a node
dies when it is to train. ``HETEROFL_PHASES=keys,shares,train,reveal`` kills one in each phase, in four rounds.
"""

import os
import subprocess
from pathlib import Path

import pytest

from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.kept import to_toml
from tests.deployment.processes import Processes, free_port, kill
from tests.docs.pages import ROOT

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

ALL = ("keys", "shares", "train", "reveal")
PHASES = tuple(os.environ.get("HETEROFL_PHASES", "train").split(","))
NODES = len(PHASES) + 3
LONGEST = 3600.0
CONFIG = {
    "mix": "a1-b1",
    "num-rounds": len(PHASES),
    "model.name": "mlp",
    "model.hidden": "16",
    "train.epochs": 1,
    "engine.name": "plain",
    "evaluate.every": 0,
    "sample.fraction": 1.0,
    "sample.wait": LONGEST,
    "sample.min-replies": 3,
    "engine.timeout": 1200.0,
    "server.stages": "secure-sum(holders=3)",
    "run.callbacks": "",
}


class Lab(Processes):
    """A SuperLink and nodes with keys of their own."""

    def do(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment, cwd=self.folder)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"

    def prepare(self) -> list[subprocess.Popen[bytes]]:
        """Start the SuperLink and the nodes; return the nodes."""
        port, keys = free_port(), self.folder / "keys"
        names = [f"--node=node-{number}" for number in range(NODES)]
        self.do("heterofl", "keys", "keys", "--host", "localhost", *names)
        (self.folder / "app").symlink_to(ROOT)
        tls = [
            f"--ssl-{name}={keys / file}"
            for name, file in (("ca-certfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key"))
        ]
        words = ["flower-superlink", *tls, "--enable-supernode-auth", f"--port={port}", "--host=127.0.0.1"]
        superlink = self.popen([*words, "--disable-runtime-dependency-installation"], "superlink", self.folder)
        self.wait_for_superlink(superlink, port, keys / "ca.crt")
        address = f'[superlink.lab]\naddress = "localhost:{port}"\nroot-certificates = "{keys / "ca.crt"}"\n'
        (self.home / "config.toml").write_text(address, encoding="utf-8")
        for number in range(NODES):
            self.do("flwr", "supernode", "register", f"keys/node-{number}.pub", "lab", "--name", f"node-{number}")
        return [self._start_node(number, port, keys) for number in range(NODES)]

    def _start_node(self, number: int, port: int, keys: Path) -> subprocess.Popen[bytes]:
        words = [
            "flower-supernode",
            f"--root-certificates={keys / 'ca.crt'}",
            f"--auth-supernode-private-key={keys / f'node-{number}'}",
        ]
        config = f"partition-id={number} num-partitions={NODES}"
        return self.popen(
            [*words, f"--superlink=127.0.0.1:{port}", f"--port={free_port()}", f"--node-config={config}"],
            f"node-{number}",
            self.folder,
            FLWR_HOME=str(self.folder / f"home-{number}"),
        )

    def kill_when_asked(self, number: int, node: subprocess.Popen[bytes]) -> None:
        """Kill a node as soon as it has received the message of its round and its phase."""
        asked = 1 + number * len(ALL) + ALL.index(PHASES[number]) + 1  # its capability, the rounds before, and this one
        received = "Receiving: "
        self.wait_for(lambda: self.log(f"node-{number}").count(received) >= asked, f"message {asked}", LONGEST)
        kill(node)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure")
    with Lab(folder, {"OMP_NUM_THREADS": "1"}) as lab:
        nodes = lab.prepare()
        (folder / "run.toml").write_text(to_toml({**CONFIG, "run.dir": str(folder / "run")}), encoding="utf-8")
        app = lab.popen(
            ["flwr", "run", "app", "lab", "--stream", "--run-config", str(folder / "run.toml")], "app", folder
        )
        for number in range(len(PHASES)):
            lab.kill_when_asked(number, nodes[number])
        app.wait(LONGEST)
        return RunFolder(folder / "run"), lab.log("app") + lab.log("superlink")


def test_each_round_ends_without_the_node_that_was_killed(run):
    history = run[0].history()
    assert [record.server_round for record in history] == list(range(1, len(PHASES) + 1)), run[1][-3000:]
    # One that is killed when it is to reveal shares has sent its change before, so it is in the sum.
    lost = [{number} if phase != "reveal" else set() for number, phase in enumerate(PHASES)]
    assert [set(record.failures) & {number} for number, record in enumerate(history)] == lost
    summed = [NODES - number - len(own) for number, own in enumerate(lost)]
    assert [record.privacy["summed-clients"] for record in history] == summed
