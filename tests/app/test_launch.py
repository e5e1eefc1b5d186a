"""Whole runs from the command line: the same bits on every engine, true exit codes, and nothing left behind.

Several runs go on at the same time, so they also show that they do not disturb one another.
"""

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

from heterofl_flwr.app.run_app import LOG
from heterofl_flwr.report import RunFolder
from tests.federation.tiny import equal
from tests.processes import MARK, Processes, free_port, marked

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
COMMAND = [sys.executable, "-c", "import sys; from heterofl_flwr.app.main import main; sys.exit(main())", "run"]
OWN = ["--clients", str(CLIENTS), *(word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}"))]
LAST = {"evaluate.every": SETTINGS["num-rounds"]}  # what is evaluated leaves the model as it is
RUNS = {
    "local": [*OWN, *(f"--set={key}={value}" for key, value in LAST.items()), "--grid", "local"],
    "killed": [*OWN, "--grid", "ray", "--parallel", "1"],
    "hangs": ["--app", str(SAMPLE), "--set", "fault=hangs", "--grid", "ray"],
}
CONNECTION = '[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "127.0.0.1:{}"\ninsecure = true\n'


@dataclass
class Ended:
    code: int
    out: str
    folder: Path

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return dict(sorted(RunFolder(self.folder).load_checkpoint().state.items()))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ended(home):
    """Run all, one Ray at a time beside the others; interrupt one run, and kill one and let it go on."""
    started = {}

    def begin(name: str, *arguments: str) -> subprocess.Popen:
        words = [*COMMAND, *(arguments or ["--out", str(home / name), *RUNS[name]])]
        started[name] = processes.popen(words, name, home, **{MARK: str(home), "TMPDIR": str(home)})
        return started[name]

    def wait_for(name: str, path: str, text: str) -> None:
        def happened() -> bool:
            assert started[name].poll() is None, processes.log(name)
            return (home / path).exists() and text in (home / path).read_text(encoding="utf-8")

        processes.wait_for(happened, text, LONGEST)

    with Processes(home) as processes:
        begin("local")
        killed = begin("killed")
        wait_for("killed", "killed/history.jsonl", "\n")
        killed.kill()
        begin("resumed", "--resume", str(home / "killed"), "--grid", "local")
        hangs = begin("hangs")
        wait_for("hangs", f"hangs/{LOG}", "result: 1")
        hangs.send_signal(signal.SIGINT)
        codes = {name: process.wait(LONGEST) for name, process in started.items()}
        return {name: Ended(code, processes.log(name), home / name) for name, code in codes.items()}


@pytest.fixture(scope="module")
def flower(tmp_path_factory):
    """Return the same run by ``flwr run .`` on Flower's own engine, which makes its folder where the SuperLink runs."""
    folder = tmp_path_factory.mktemp("flower")
    settings = {**SETTINGS, **LAST}
    told = " ".join(f"{key}={value!r}".replace("'", '"') for key, value in settings.items())
    with Processes(folder) as processes:
        port = free_port()
        (processes.home / "config.toml").write_text(CONNECTION.format(port))
        words = ["--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)]
        processes.popen(["flower-superlink", *words], "superlink", folder)
        processes.wait_for(lambda: "Starting Flower SuperLink" in processes.log("superlink"), "the SuperLink")
        federation = f"num-supernodes={CLIENTS} client-resources-num-cpus=1"
        words = ["run", str(ROOT), "--stream", "--run-config", told, "--federation-config", federation]
        run = processes.popen(["flwr", *words], "flwr")
        run.wait(LONGEST)
        made = next(folder.glob("runs/*"), folder / "runs")
        return Ended(run.returncode, processes.log("flwr") + processes.log("superlink"), made)


def test_a_run_completes_and_shows_its_rounds(ended):
    run = ended["local"]
    assert run.code == 0, run.out
    assert re.search(r"^round 5/5 took=.* global=", run.out, re.MULTILINE)
    assert (run.folder / "report.html").exists()


def test_flwr_run_trains_the_same_bits_on_flowers_own_engine(ended, flower):
    assert (flower.folder / "report.html").exists(), flower.out
    assert f"report: {flower.folder / 'report.html'}" in flower.out
    assert equal(flower.state, ended["local"].state)


def test_a_run_killed_on_ray_goes_on_in_one_process_to_its_bits(ended):
    assert ended["killed"].code == -signal.SIGKILL
    assert ended["resumed"].code == 0, ended["resumed"].out
    assert equal(ended["killed"].state, ended["local"].state)


def test_an_interrupt_ends_the_run_at_once(ended):
    run = ended["hangs"]
    assert run.code == 130
    assert run.out.splitlines()[-1] == "heterofl: interrupted"
    assert "result: 1" in run.out  # of another app the log is shown


def test_no_process_and_no_private_folder_is_left(ended, home):
    assert not [path.name for path in home.iterdir() if path.name.startswith("ray-")]
    deadline = time.monotonic() + 120
    while left := marked(str(home)):
        assert time.monotonic() < deadline, [process.cmdline() for process in left if psutil.pid_exists(process.pid)]
        time.sleep(0.2)
