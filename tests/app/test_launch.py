"""Whole runs from the command line: the same bits on every engine, true exit codes, and nothing left behind.

Several runs go on at the same time, so they also show that they do not disturb one another.
"""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from heterofl_flwr.app.launch.running import LOG
from heterofl_flwr.report import RunFolder
from tests.deployment.processes import MARK, Processes, free_port, marked

pytestmark = [pytest.mark.simulation, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).parent / "sample_app"
LONGEST = 600.0
CLIENTS = 4
SETTINGS = {
    "num-rounds": 5,
    "train.epochs": 1,
    "model.hidden": "4,8",
    "run.callbacks": "",
    "engine.name": "plain",
    "sample.min-nodes": CLIENTS,
}
OWN = ["--clients", str(CLIENTS), *(word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}"))]
RUNS = {
    "local": [*OWN, "--grid", "local"],
    "killed": [*OWN, "--grid", "ray", "--parallel", "1"],
    "hangs": ["--app", str(SAMPLE), "--set", "fault=hangs", "--grid", "ray"],
}
CONNECTION = '[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "127.0.0.1:{}"\ninsecure = true\n'


@dataclass
class Ended:
    code: int
    out: str
    err: str
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / LOG).read_text(encoding="utf-8")

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return RunFolder(self.folder).load_checkpoint().state


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ended(home):
    """Run all, one Ray at a time beside the others; interrupt one run, and kill one and let it go on."""
    started = {}

    def begin(name: str, *arguments: str) -> None:
        started[name] = start(home, *(arguments or ["--out", str(home / name), *RUNS[name]]))

    try:
        begin("local")
        begin("killed")
        wait_for(home / "killed" / "history.jsonl", "\n", started["killed"])
        started["killed"].kill()
        begin("resumed", "--resume", str(home / "killed"), "--grid", "local")
        begin("hangs")
        wait_for(home / "hangs" / LOG, "result: 1", started["hangs"])
        started["hangs"].send_signal(signal.SIGINT)
        started["hangs"].wait(LONGEST)
        return {name: end(home / name, process) for name, process in started.items()}
    finally:
        for process in started.values():
            process.kill()


def start(home: Path, *arguments: str) -> subprocess.Popen:
    code = "import sys; from heterofl_flwr.app.cli.main import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env={**os.environ, MARK: str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT)},
    )


def end(folder: Path, process: subprocess.Popen) -> Ended:
    out, err = process.communicate(timeout=LONGEST)
    return Ended(process.returncode, out, err, folder)


def wait_for(path: Path, text: str, run: subprocess.Popen) -> None:
    deadline = time.monotonic() + LONGEST
    while not path.exists() or text not in path.read_text(encoding="utf-8"):
        assert run.poll() is None, f"the run has ended before {text!r} came to {path}: {run.communicate()[1]}"
        assert time.monotonic() < deadline, f"{text!r} never came to {path}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    """Return the folder of the same run by ``flwr run .`` on Flower's own engine."""
    folder = tmp_path_factory.mktemp("flower")
    settings = {**SETTINGS, "run.dir": str(folder / "run")}
    told = " ".join(f"{key}={value!r}".replace("'", '"') for key, value in settings.items())
    with Processes(folder) as processes:
        port = free_port()
        (processes.home / "config.toml").write_text(CONNECTION.format(port))
        words = ["--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)]
        processes.popen(["flower-superlink", *words], "superlink")
        processes.wait_for(lambda: "Starting Flower SuperLink" in processes.log("superlink"), "the SuperLink")
        federation = f"num-supernodes={CLIENTS} client-resources-num-cpus=1"
        words = ["run", str(ROOT), "--stream", "--run-config", told, "--federation-config", federation]
        run = processes.popen(["flwr", *words], "flwr")
        run.wait(LONGEST)
        return Ended(run.returncode, processes.log("flwr"), processes.log("superlink"), folder / "run")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_completes_and_shows_its_rounds(ended):
    run = ended["local"]
    assert run.code == 0, run.err
    assert re.search(r"^round 5/5 took=.* global=", run.out, re.MULTILINE)
    assert (run.folder / "report.html").exists()


def test_flwr_run_trains_the_same_bits_on_flowers_own_engine(ended, flower):
    assert (flower.folder / "report.html").exists(), flower.out + flower.err
    assert same(flower.state, ended["local"].state)


def test_a_run_killed_on_ray_goes_on_in_one_process_to_its_bits(ended):
    assert ended["killed"].code == -signal.SIGKILL
    assert ended["resumed"].code == 0, ended["resumed"].err
    assert same(RunFolder(ended["killed"].folder).load_checkpoint().state, ended["local"].state)


def test_an_interrupt_ends_the_run_at_once(ended):
    run = ended["hangs"]
    assert run.code == 130
    assert run.err.splitlines()[-1] == "heterofl: interrupted"
    assert "result: 1" in run.err  # of another app the log is shown


def test_no_process_and_no_private_folder_is_left(ended, home):
    assert not [path.name for path in home.iterdir() if path.name.startswith("ray-")]
    deadline = time.monotonic() + 120
    while left := marked(str(home)):
        assert time.monotonic() < deadline, [process.cmdline() for process in left if psutil.pid_exists(process.pid)]
        time.sleep(0.2)
