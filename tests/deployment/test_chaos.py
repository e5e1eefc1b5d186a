"""Ten minutes of chaos: a seeded schedule kills, freezes and cuts off nodes, the SuperLink and the ServerApp."""

import random
import re
import statistics
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import psutil
import pytest

from heterofl_flwr.report import RunFolder
from tests.deployment.lab import LONGEST, RESTART_SECONDS, SMALL, Lab
from tests.deployment.proxy import Proxy
from tests.deployment.replay import check
from tests.processes import kill, marked

pytestmark = [pytest.mark.deployment, pytest.mark.release]

SEED, SECONDS, NODES = 0, 600.0, 3
PAUSE, LENGTH = (0.5, 2.0), (2.0, 20.0)
"""Rounds between two faults, by the seconds of the first one, and seconds of each fault."""

GROWTH = 1.5
"""Upper bound of what is taken in the last third of the time, in times of the first."""

LEFT_OVER, ENDING = 600.0, 60.0
"""Seconds in which no process of a run is left, and in which the others end with a signal."""

CONFIG = {
    **SMALL,
    "mix": "a1-b1-c1",
    "num-rounds": 1000,
    "sample.fraction": 1.0,
    "sample.min-nodes": 1,
    "sample.min-replies": 1,
    "engine.timeout": 120.0,
}


class Sample(NamedTuple):
    """What the laboratory takes at a time."""

    seconds: float
    memory: int  # bytes, of all processes
    disk: int  # bytes, without logs
    clients: int  # processes of clients
    rounds: int  # with a checkpoint


class Chaos(Lab):
    """A laboratory in which things go wrong, and are started again as by systemd units and an operator."""

    def __init__(self, folder):
        super().__init__(folder)
        self.run = RunFolder(folder / "chaos")
        self.resumed, self.began = 0, time.monotonic()

    @contextmanager
    def killed_superlink(self):
        kill(self.superlink)
        self.kill_run()  # as systemd does with what a service leaves
        yield

    def faults(self, number):
        """Return the faults by name, some of them of a node."""
        return {
            "kill a node": lambda: self.killed_node(number),
            "kill the SuperLink": self.killed_superlink,
            "kill the ServerApp": self.killed_serverapp,
            "freeze a node": lambda: self.frozen([self.nodes[number].pid]),
            "freeze the SuperLink": lambda: self.frozen([self.superlink.pid]),
            "freeze the ServerApp": lambda: self.frozen(self.numbers_of("flwr-serverapp")),
            "cut a node": lambda: self.cut([number]),
            "cut the SuperLink": lambda: self.cut(range(NODES)),
        }

    def keep_up(self):
        """Start what has ended again, and resume the run."""
        self.restart()
        if not self.is_running:
            self.start("chaos", {**CONFIG, "run.resume": self.run.started})
            self.resumed += 1

    def sample(self):
        """Load the checkpoint, and return what the laboratory takes."""
        rounds = self.run.load_checkpoint().server_round if self.run.has_checkpoint else 0
        memory = 0
        for process in marked(self._mark):
            with suppress(psutil.NoSuchProcess):
                memory += process.memory_info().rss
        clients, seconds = len(self.numbers_of("flwr-clientapp")), time.monotonic() - self.began
        return Sample(seconds, memory, sum(map(disk, (self.folder, self.home))), clients, rounds)

    def stop(self):
        """Stop the run, and wait for its end."""

        def numbers():
            return re.findall(r"Successfully started run (\d+)", self.recent_log("chaos"))

        self.wait_for(lambda: numbers() or self.app.poll() is not None, "the number of the run")
        if found := numbers():
            subprocess.run(["flwr", "stop", found[0], "lab"], env=self.environment, cwd=self.folder)
        self.wait_for_end()

    def end(self):
        """Wait until no process of a run is left; end all others with their signal, as a service manager does."""
        apps = ("flwr-serverapp", "flwr-clientapp")
        self.wait_for(lambda: not any(map(self.numbers_of, apps)), "the end of all apps", LEFT_OVER)
        for process in marked(self._mark):
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        self.wait_for(lambda: not marked(self._mark), "the end of all processes", ENDING)


def disk(folder):
    """Return the bytes of all files below a folder but logs."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() and path.suffix != ".log" else 0
    return size


def play(lab):
    """Let things go wrong after a first round; return samples."""
    lab.wait_for(lambda: lab.run.has_checkpoint or not lab.is_running, "a first round", LONGEST)
    seconds = lab.run.history()[0].seconds
    chance, samples, until = random.Random(SEED), [], time.monotonic() + SECONDS
    begins, names = time.monotonic() + seconds * chance.uniform(*PAUSE), []
    while time.monotonic() < until:
        if time.monotonic() >= begins:
            number = chance.randrange(NODES)
            faults = lab.faults(number)
            names = names or chance.sample(sorted(faults), len(faults))  # each of them, in another order
            name = names.pop()
            with (lab.folder / "faults.log").open("a") as log:
                log.write(f"{time.monotonic() - lab.began:.0f} s: {name} ({number})\n")
            with faults[name]():
                time.sleep(chance.uniform(*LENGTH))
            begins = time.monotonic() + seconds * chance.uniform(*PAUSE)
        lab.keep_up()
        samples.append(lab.sample())
        with (lab.folder / "samples.log").open("a") as log:
            log.write(f"{samples[-1]}\n")
        time.sleep(RESTART_SECONDS)
    return samples


def test_ten_minutes_of_chaos(tmp_path):
    with ExitStack() as stack:

        def through(number, port):
            lab.proxies.append(stack.enter_context(Proxy(port)))
            return lab.proxies[-1].port

        lab = stack.enter_context(Chaos(tmp_path))
        lab.prepare(NODES, through, "--database", str(tmp_path / "superlink.db"))
        lab.start("chaos", CONFIG)
        samples = play(lab)
        lab.stop()
        config = {**CONFIG, "num-rounds": len(lab.run.history()) + 1}
        for _ in range(3):
            if not lab.run.models.exists():
                lab.start("chaos", {**config, "run.resume": lab.run.started})
                lab.wait_for_end()
        log = lab.log("chaos") + lab.log("superlink")
        lab.end()
    check(lab.run, config, NODES, log, tmp_path)
    third = len(samples) // 3
    early, late = (
        Sample(*map(statistics.median, zip(*some, strict=True))) for some in (samples[:third], samples[-third:])
    )
    assert late.memory <= GROWTH * early.memory
    assert late.disk <= GROWTH * early.disk
    assert late.clients <= NODES
