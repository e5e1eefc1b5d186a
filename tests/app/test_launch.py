"""The launcher with Flower and Ray: true exit codes, and nothing left behind.

All runs go on at the same time, each in a process of its own, so they also show that they do not disturb one another.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.simulation

SAMPLE = Path(__file__).parent / "sample_app"
CLASSIC = Path(__file__).parent / "classic_app"
LONGEST = 600.0
OWN = ["--rounds", "1", "--clients", "2", "--set", "train.epochs=1", "--set", "model.hidden=4,8"]
RUNS = {
    "own": [*OWN, "--set", "run.callbacks="],
    "good": ["--app", str(SAMPLE), "--set", "note.text=two words"],
    "server": ["--app", str(SAMPLE), "--set", "fault=server"],
    "client": ["--app", str(SAMPLE), "--set", "fault=client"],
    "classic": ["--app", str(CLASSIC), "--clients", "5"],
    "hangs": ["--app", str(SAMPLE), "--set", "fault=hangs"],
}


@dataclass
class Ended:
    code: int
    out: str
    err: str
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "logs" / "flower.log").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Start all runs at once, interrupt the one that hangs, and wait for all."""
    home = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "HETEROFL_TEST": str(home), "TMPDIR": str(home)}
    broken = shutil.copytree(SAMPLE, home / "broken-app")
    (broken / "sample" / "client.py").unlink()
    runs = {**RUNS, "refused": ["--app", str(broken)]}
    started = {name: start(home / name, arguments, environment) for name, arguments in runs.items()}
    try:
        wait_for(home / "hangs" / "logs" / "flower.log", "result: 1")
        started["hangs"].send_signal(signal.SIGINT)
        texts = {name: process.communicate(timeout=LONGEST) for name, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
    return {name: Ended(process.returncode, *texts[name], home / name) for name, process in started.items()}


def start(folder: Path, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    code = "import sys; from heterofl_flwr.app.command import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "run", "--gpus", "0", "--parallel", "2", "--out", str(folder), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=folder.parent)


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        if path.exists() and text in path.read_text(encoding="utf-8"):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{text!r} never came")


def test_a_run_of_our_own_app_completes_and_shows_its_rounds(ended):
    run = ended["own"]
    assert run.code == 0, run.err
    assert "round 1/1" in run.out
    assert "global-accuracy" in run.out
    assert (run.folder / "report.html").exists()
    assert len((run.folder / "history.jsonl").read_text().splitlines()) == 1
    settings = json.loads((run.folder / "settings.json").read_text())["settings"]
    assert settings["sample.min-nodes"] == 2


def test_a_run_of_another_app_completes_with_the_settings_it_was_given(ended):
    run = ended["good"]
    assert run.code == 0, run.err
    assert "note: two words" in run.log
    assert "result: 1" in run.out  # the log is what it shows


def test_the_classic_api_trains_mixed_levels_with_a_numpyclient(ended):
    run = ended["classic"]
    assert run.code == 0, run.err
    assert run.log.count("rates [0.0625, 0.125, 0.25, 0.5, 1.0]") >= 3
    accuracies = [float(found) for found in re.findall(r"classic round 3: accuracy ([\d.]+)", run.log)]
    assert accuracies[-1] > 0.6


def test_a_server_that_raises_fails_the_run(ended):
    run = ended["server"]
    assert run.code == 1
    assert "heterofl: the run failed: RuntimeError: the server's own fault" in run.err
    assert 'raise RuntimeError("the server\'s own fault")' in run.err
    assert str(run.folder / "logs" / "flower.log") in run.err


def test_clients_that_all_raise_fail_the_run_though_flower_says_completed(ended):
    run = ended["client"]
    assert run.code == 1
    assert "in a round all 2 clients that were asked failed; RuntimeError: the client's own fault" in run.err


def test_an_interrupt_ends_the_run_at_once(ended):
    run = ended["hangs"]
    assert run.code == 130
    assert run.err.endswith("heterofl: interrupted\n")
    assert "Traceback" not in run.err


def test_a_run_that_flower_refuses_fails_with_flowers_words(ended):
    run = ended["refused"]
    assert run.code == 1
    assert "Flower refused the run" in run.err
    assert "Unable to load module sample.client" in run.err


def test_no_process_and_no_private_folder_is_left(ended):
    home = next(iter(ended.values())).folder.parent
    assert not [path.name for path in home.iterdir() if path.name.startswith("heterofl-")]
    assert not [path for path in Path("/tmp").glob("heterofl-*") if path.stat().st_ctime > home.stat().st_ctime]
    mark = f"HETEROFL_TEST={home}".encode()
    assert not [process for process in living() if mark in process.read_bytes().split(b"\0")]


def living():
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            (folder / "environ").read_bytes()
        except OSError:
            continue
        yield folder / "environ"
