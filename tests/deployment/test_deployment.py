"""The page on deployment, followed to the letter: TLS, known nodes, and nginx where it is installed.

Beside that the ServerApp and a node are killed, and strangers try what they can.
"""

import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import tomllib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from heterofl_flwr.app import server_app
from heterofl_flwr.app.certificates import write_node_key
from heterofl_flwr.app.workload import Workload
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings.validate import flatten, from_flat
from heterofl_flwr.settings.without_torch import to_toml
from tests.deployment import replay
from tests.deployment.howto import ADDRESS, NGINX, HowTo
from tests.deployment.lab import LONGEST, SMALL
from tests.docs.pages import ROOT
from tests.processes import Processes, free_port, kill

pytestmark = [pytest.mark.deployment, pytest.mark.slow]
needs_nginx = pytest.mark.skipif(NGINX is None, reason="needs nginx")

NAMES = ("phone", "camera")
LEVELS = {"c": 0.25, "a": 1.0}  # of the phone and of the camera
ROUNDS = 2  # the ServerApp is killed in the last
# What the page's run leaves to slower defaults, and one round fewer.
QUICK = {**SMALL, "num-rounds": ROUNDS, "model.hidden": "32", "train.epochs": 3}
SPELLINGS = [
    "/v1/control/list-runs",
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/..%2fcontrol/list-runs",
    "//v1/control/list-runs",
    "/v1/control/list-runs?/v1/fleet/",
    "/v1/runtime/acquire-task",
    "/openapi.json",
    "/health",
]


@dataclass(frozen=True)
class Ended:
    run: RunFolder
    config: Mapping[str, object]  # of the run, as the page and this test have it
    first_round: list[RoundRecord]  # the history when the ServerApp was killed
    statuses: Mapping[str, str]  # of the runs, by their number
    numbers: list[str]  # of the two runs, in their order
    codes: dict[str, int]
    logs: dict[str, str]
    deadline: float
    answers: Mapping[str, int]  # to requests through the open port
    left: list[str]  # of the page's commands
    health: Mapping[str, object]  # in the second round


class Follower(Processes):
    """Does what the page says, in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.page = HowTo(folder)

    def do(self, beginning: str) -> str:
        """Run the page's next command that begins so, to its end; return what it prints."""
        command = self.page.take(beginning)
        options = {"env": self.environment, "cwd": self.folder, "timeout": LONGEST}
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, **options)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, command: str, log: str, folder: Path | None = None, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command, which goes on."""
        return self.popen(["bash", "-c", f"exec {command}"], log, folder or self.folder, **variables)

    def start_node(self, name: str, command: str) -> subprocess.Popen[bytes]:
        """Start a node with its key and the authority in a folder of its own; several on a machine need a port each."""
        own = self.folder / f"on-{name}"
        own.mkdir()
        for file in ("ca.crt", name):
            shutil.copy(self.folder / "keys" / file, own)
        return self.start(f"{command} --port {free_port()}", name, own, FLWR_HOME=str(own / "home"))

    def prepare(self) -> dict[str, subprocess.Popen[bytes]]:
        """Follow the page until nodes run, and return these."""
        self.environment["NO_PROXY"] += f",{ADDRESS}"
        (self.folder / "heterofl-flwr").symlink_to(ROOT)
        self.do("heterofl keys")
        superlink = self.start(self.page.take("flower-superlink"), "superlink")
        self.wait_for_superlink(superlink, self.page.port, self.folder / "keys" / "ca.crt")
        self.do("sed")
        config = self.folder / "nginx.conf"
        config.write_text(self.page.here(config.read_text(encoding="utf-8")), encoding="utf-8")
        proxy = self.page.take("nginx")
        if NGINX:
            self.start(proxy, "nginx")
        (self.home / "config.toml").write_text(self.page.files["~/.flwr/config.toml"], encoding="utf-8")
        for name in NAMES:
            self.do(f"flwr supernode register keys/{name}.pub")
        self.node_commands = {name: self.page.take("heterofl supernode") for name in NAMES}
        self.strange_node = self.node_commands["phone"].replace(" phone ", " stranger ")
        return {name: self.start_node(name, node) for name, node in self.node_commands.items()}

    def start_strangers(self) -> dict[str, subprocess.Popen[bytes]]:
        """Start a node whose key nobody registered, one that does not speak TLS, and someone who would submit a run."""
        write_node_key(self.folder / "keys", "stranger")
        address = self.page.open_address
        plain = f"flower-supernode --insecure --max-retries=1 --superlink {address} --port {free_port()}"
        started = {
            "stranger": self.start_node("stranger", self.strange_node),
            "plain": self.start(plain, "plain", FLWR_HOME=str(self.folder / "plain")),
        }
        if NGINX:
            home = self.folder / "of-stranger"
            home.mkdir()
            config = self.page.files["~/.flwr/config.toml"].replace(f"localhost:{self.page.port}", address)
            (home / "config.toml").write_text(config, encoding="utf-8")
            calls = ("supernode register keys/stranger.pub lab --name stranger", "ls lab", "run heterofl-flwr lab")
            for number, words in enumerate(calls):
                started[f"flwr-{number}"] = self.start(f"flwr {words}", f"flwr-{number}", FLWR_HOME=str(home))
        return started

    def submit(self, command: str, log: str, config: Mapping[str, object]) -> subprocess.Popen[bytes]:
        """Submit the page's run with these settings."""
        (self.folder / "first.toml").write_text(to_toml(config), encoding="utf-8")
        process = self.start(command, log)
        self.wait_for(lambda: process.poll() is not None or self.number_of(log), "the number of a run", LONGEST)
        assert self.number_of(log), self.log(log)
        return process

    def number_of(self, log: str) -> str | None:
        """Return the number of a run that was submitted."""
        match = re.search(r"Successfully started run (\d+)", self.log(log))
        return match[1] if match else None

    def wait_for_last_round(self, run: subprocess.Popen[bytes], number: int = 1) -> None:
        """Wait until the phone begins to train in the last round, for the ``number``-th time."""
        begins = f"round {ROUNDS}: train at level"
        self.wait_for(lambda: self.log("phone").count(begins) >= number or run.poll() is not None, begins, LONGEST)
        assert run.poll() is None, self.log("phone")

    def answer(self, path: str) -> int:
        """Return the status of the answer to a request through the open port, its path as it is written here."""
        host, _, port = self.page.open_address.partition(":")
        context = ssl.create_default_context(cafile=self.folder / "keys" / "ca.crt")
        with closing(http.client.HTTPSConnection(host, int(port), context=context, timeout=300)) as connection:
            connection.request("POST", path, headers={"content-type": "application/protobuf"})
            return connection.getresponse().status


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Run a round, kill the ServerApp in the second, go on with that one, and kill the phone."""
    folder = tmp_path_factory.mktemp("deployment")
    run = RunFolder(folder / "run")
    with Follower(folder) as follower:
        nodes = follower.prepare()
        command = follower.page.take("flwr run")
        config = {**flatten(tomllib.loads(follower.page.files["first.toml"])), **QUICK}
        killed = follower.submit(command, "killed", config)
        strangers = follower.start_strangers()
        answers = {path: follower.answer(path) for path in (*SPELLINGS, "/v1/fleet/pull-messages")} if NGINX else {}
        codes = {name: process.wait(LONGEST) for name, process in strangers.items()}
        follower.wait_for_last_round(killed)
        health = json.loads(follower.do("curl"))
        (server,) = follower.numbers_of("flwr-serverapp")
        os.kill(server, signal.SIGKILL)
        first_round = run.history()
        deadline = max(3 * first_round[-1].seconds, 15.0)
        resumed = follower.submit(command, "resumed", {**config, "run.resume": True, "engine.timeout": deadline})
        follower.wait_for_last_round(resumed, 2)
        kill(nodes["phone"])
        resumed.wait(LONGEST)
        runs = json.loads(follower.do("flwr ls"))["runs"]
        statuses = {str(one["run-id"]): str(one["status"]) for one in runs}
        numbers = [str(follower.number_of(log)) for log in ("killed", "resumed")]
        logs = {name: follower.log(name) for name in (*strangers, *nodes, "superlink", "resumed")}
    left = follower.page.commands
    return Ended(run, config, first_round, statuses, numbers, codes, logs, deadline, answers, left, health)


def test_every_command_of_the_page_was_run(ended):
    assert ended.left == []


def test_a_run_serves_its_health(ended):
    (first,) = ended.first_round
    clients = f"{first.answered}/{first.expected}"
    expected = {"status": "ok", "round": 1, "rounds": ROUNDS, "clients": clients, "away": {}}
    assert {key: ended.health[key] for key in expected} == expected
    assert [node["name"] for node in ended.health["failing"]] == [*first.unanswered]  # on a slow machine, one may be


def test_logs_have_the_time_on_the_server_and_the_round_on_nodes(ended):
    assert re.search(r"\d\d:\d\d:\d\d\S* ?: +.*Metrics: http", ended.logs["resumed"])
    assert all(f": train at level {level}" in ended.logs[name] for name, level in zip(NAMES, "ca", strict=True))


def test_the_run_completes_though_its_server_and_a_node_die(ended):
    killed, resumed = (ended.statuses[number] for number in ended.numbers)
    assert killed != "finished:completed"
    assert resumed == "finished:completed"
    assert [record.server_round for record in ended.first_round] == [1]
    history = ended.run.history()
    assert len(history) == ROUNDS
    for record in history:  # on a slow machine Flower ends a node's first task before its process has started
        rates = dict(zip(NAMES, LEVELS.values(), strict=True))
        assert list(record.rates.values()) == [rates[name] for name in NAMES if name not in record.unanswered]
    *whole, last = [record.failures for record in history]
    assert whole == [{}]
    # On a slow machine Flower notices the end of a node before the deadline.
    assert list(last) == [0]
    assert re.match("no reply in time|error 5: .*Node Unavailable|.*its node stopped while it sent", last[0])


def test_the_model_is_that_of_a_run_whose_server_was_not_killed(ended, tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "name", NAMES.__getitem__)  # the server has a table of their levels
    config = {**ended.config, "run.dir": str(tmp_path / "whole"), "sample.min-nodes": 1, "sample.wait": 1.0}
    levels = [{"level": level} for level in LEVELS]
    client = "heterofl_flwr.app.client_app:app"
    with replay.Replay(client, len(LEVELS), run_config=config, node_config=levels.__getitem__) as grid:
        grid.history, grid.lost = ended.run.history(), set()
        server_app.run(grid, Workload(from_flat(config)))
    replay.check_models(ended.run.path, tmp_path / "whole")


def test_the_death_of_a_node_costs_no_more_than_the_deadline(ended):
    *whole, last = [record.seconds for record in ended.run.history()]
    assert last < ended.deadline + max(whole)  # what else a round does takes as long as on this machine a round takes


def test_nodes_that_nobody_registered_or_without_tls_cannot_join(ended):
    assert ended.codes["stranger"] != 0
    assert "Failed to activate" in ended.logs["stranger"]
    assert ended.codes["plain"] != 0
    assert "Receiving" not in ended.logs["plain"]


@needs_nginx
def test_a_stranger_with_the_certificate_can_do_nothing(ended):
    calls = [name for name in ended.codes if name.startswith("flwr-")]
    assert len(calls) == 3
    assert all(ended.codes[name] != 0 and "403" in ended.logs[name] for name in calls), ended.logs
    assert sorted(ended.statuses) == sorted(ended.numbers)
    assert ended.logs["superlink"].count("Created node_id") == len(LEVELS)


@needs_nginx
def test_the_open_port_lets_through_the_paths_of_nodes_alone(ended):
    expected = dict.fromkeys(SPELLINGS, 403)
    assert {path: ended.answers[path] for path in SPELLINGS} == expected
    assert ended.answers["/v1/fleet/pull-messages"] == 401  # the SuperLink's own answer to who signs nothing
