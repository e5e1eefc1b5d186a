"""A SuperLink with TLS and known nodes, of which tests kill some."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from heterofl_flwr.settings.value_types import Flat
from heterofl_flwr.settings.without_torch import to_toml
from tests.deployment.proxy import Proxy
from tests.docs.pages import ROOT
from tests.processes import Processes, free_port, kill

LONGEST = 3600.0
RESTART_SECONDS = 5.0

SMALL: Mapping[str, Flat] = {
    "model.name": "mlp",
    "model.hidden": "16",
    "train.epochs": 1,
    "engine.name": "plain",
    "evaluate.every": 0,
    "sample.wait": LONGEST,
    "engine.timeout": 1200.0,
    "run.callbacks": "",
}
"""A run that trains a small model, and waits for nodes as long as it takes."""


class Lab(Processes):
    """A SuperLink and nodes with keys of their own, and faults of them.

    Attributes
    ----------
    proxies
        The proxy of each node, if the nodes connect through proxies.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.proxies: list[Proxy] = []

    def do(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment, cwd=self.folder)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"

    def prepare(
        self, nodes: int, through: Callable[[int, int], int] = lambda number, port: port, *options: str
    ) -> list[subprocess.Popen[bytes]]:
        """Start the SuperLink, with these options, and the nodes; return the nodes.

        ``through`` returns, from the number of a node and the SuperLink's port, the port to which the node connects.
        """
        port, keys = free_port(), self.folder / "keys"
        names = [f"--node=node-{number}" for number in range(nodes)]
        self.do("heterofl", "keys", "keys", "--host", "localhost", *names)
        (self.folder / "app").symlink_to(ROOT)
        tls = [
            f"--ssl-{name}={keys / file}"
            for name, file in (("ca-certfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key"))
        ]
        words = ["flower-superlink", *tls, "--enable-supernode-auth", f"--port={port}", "--host=127.0.0.1"]
        self._superlink_command = [*words, "--disable-runtime-dependency-installation", *options]
        self.superlink = self.popen(self._superlink_command, "superlink", self.folder)
        self.wait_for_superlink(self.superlink, port, keys / "ca.crt")
        address = f'[superlink.lab]\naddress = "localhost:{port}"\nroot-certificates = "{keys / "ca.crt"}"\n'
        (self.home / "config.toml").write_text(address, encoding="utf-8")
        for number in range(nodes):
            self.do("flwr", "supernode", "register", f"keys/node-{number}.pub", "lab", "--name", f"node-{number}")
        self._ports = [through(number, port) for number in range(nodes)]
        self.nodes = [self._start_node(number, keys) for number in range(nodes)]
        return self.nodes

    def restart(self) -> None:
        """Start what has ended again, as the page's units do: a SuperLink rejects a killed node for a minute."""
        if self.superlink.poll() is not None:
            self.superlink = self.popen(self._superlink_command, "superlink", self.folder)
        for number, node in enumerate(self.nodes):
            if node.poll() is not None:
                self.nodes[number] = self._start_node(number, self.folder / "keys")

    @property
    def is_running(self) -> bool:
        """Whether a run, or its ServerApp, has not ended."""
        return self.app.poll() is None or bool(self.numbers_of("flwr-serverapp"))

    def kill_run(self) -> None:
        """Kill the ServerApp, and the command that waits for it."""
        for number in self.numbers_of("flwr-serverapp"):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        kill(self.app)

    @contextmanager
    def killed_node(self, number: int) -> Iterator[None]:
        kill(self.nodes[number])
        yield

    @contextmanager
    def killed_serverapp(self) -> Iterator[None]:
        self.kill_run()
        yield

    @contextmanager
    def frozen(self, pids: Iterable[int]) -> Iterator[None]:
        """Stop processes, except for those that have ended; let them go on at the end."""
        processes = []
        for pid in pids:
            with suppress(psutil.NoSuchProcess):
                processes.append(psutil.Process(pid))
                processes[-1].suspend()
        yield
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    @contextmanager
    def cut(self, numbers: Sequence[int]) -> Iterator[None]:
        """Cut the connections of nodes; heal them at the end."""
        for number in numbers:
            self.proxies[number].cut()
        yield
        for number in numbers:
            self.proxies[number].heal()

    def wait_for_nodes(self) -> None:
        """Start nodes that have ended, until all are connected."""

        def are_connected() -> bool:
            self.restart()
            words = ["flwr", "supernode", "list", "lab", "--format", "json"]
            done = subprocess.run(words, capture_output=True, text=True, env=self.environment, check=True)
            statuses = [node["status"] for node in json.loads(done.stdout)["nodes"]]
            return statuses.count("online") == len(self.nodes)

        self.wait_for(are_connected, "the connection of all nodes", LONGEST)

    def wait_for_end(self) -> None:
        """Wait until the run and its ServerApp have ended."""
        deadline = time.monotonic() + LONGEST
        while self.is_running:
            assert time.monotonic() < deadline
            self.restart()
            time.sleep(RESTART_SECONDS)

    def _start_node(self, number: int, keys: Path) -> subprocess.Popen[bytes]:
        words = [
            *("heterofl", "supernode"),
            f"--root-certificates={keys / 'ca.crt'}",
            f"--auth-supernode-private-key={keys / f'node-{number}'}",
        ]
        config, port = f"partition-id={number} num-partitions={len(self._ports)}", self._ports[number]
        return self.popen(
            [*words, f"--superlink=127.0.0.1:{port}", f"--port={free_port()}", f"--node-config={config}"],
            f"node-{number}",
            self.folder,
            FLWR_HOME=str(self.folder / f"home-{number}"),
        )

    def start(self, name: str, config: Mapping[str, Flat]) -> subprocess.Popen[bytes]:
        """Start a run, whose folder and log have this name."""
        path = self.folder / f"{name}.toml"
        path.write_text(to_toml({**config, "run.dir": str(self.folder / name)}), encoding="utf-8")
        self.before = {log.stem: len(self.log(log.stem)) for log in self.folder.glob("*.log")}
        self.app = self.popen(["flwr", "run", "app", "lab", "--stream", "--run-config", str(path)], name, self.folder)
        return self.app

    def received(self, number: int, kind: str = "") -> int:
        """Return how many messages of a kind a node has received in this run."""
        name = f"node-{number}"
        return self.recent_log(name).count(f"Receiving: {kind}")

    def recent_log(self, name: str) -> str:
        """Return what a process has printed since the run was started."""
        return self.log(name)[self.before.get(name, 0) :]

    def kill_when_asked(self, number: int, node: subprocess.Popen[bytes], asked: int) -> None:
        """Kill a node as soon as it has received that many messages, or the run has ended without them."""
        self.wait_for(
            lambda: self.received(number) >= asked or self.app.poll() is not None, f"message {asked}", LONGEST
        )
        kill(node)

    def kill_one_that_trains(self, nodes: Sequence[subprocess.Popen[bytes]]) -> int | None:
        """Kill the first node that is asked to train, whichever that is; return its number; None where none is."""

        def asked() -> int | None:
            return next((number for number in range(len(nodes)) if self.received(number, "train")), None)

        self.wait_for(lambda: asked() is not None or self.app.poll() is not None, "a message to train", LONGEST)
        if (found := asked()) is not None:
            kill(nodes[found])
        return found
