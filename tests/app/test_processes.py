"""Finding and ending the processes of a run, with processes that resist."""

import os
import subprocess
import sys
import time

import pytest

from heterofl_flwr.app.launch import guard, processes

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
# A parent whose child has forgotten the mark and lives in a session of its own, as Ray's workers do.
FORGETFUL = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {DEAF!r}], env={{}}, start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def start(code: str, mark: str) -> tuple[subprocess.Popen, str]:
    environment = {**os.environ, processes.MARK: mark}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process.stdout:
        return process, process.stdout.readline().strip()


def numbers(mark: str) -> set[int]:
    return {process.number for process in processes.marked(mark)}


def test_processes_are_found_by_their_mark_and_their_descendants_with_them():
    parent, child = start(FORGETFUL, "one")
    other, _ = start(DEAF, "another")
    try:
        assert numbers("one") == {parent.pid, int(child)}
        assert numbers("another") == {other.pid}
        assert numbers("on") == set()
    finally:
        for mark in ("one", "another"):
            processes.end(mark, patience=0.5)
        parent.wait(5)
        other.wait(5)
    assert numbers("one") == numbers("another") == set()


def test_what_hears_is_asked_and_what_is_deaf_is_ended():
    hears, _ = start("print('up', flush=True); import time; time.sleep(60)", "both")
    deaf, _ = start(DEAF, "both")
    began = time.monotonic()
    processes.end("both", patience=0.5)
    assert hears.wait(5) == -15
    assert deaf.wait(5) == -9
    assert time.monotonic() - began < 4


def test_no_process_is_no_work():
    began = time.monotonic()
    processes.end("nobody has this mark")
    assert time.monotonic() - began < 2


def test_a_process_that_has_a_number_again_is_another_one():
    one = processes.Process(os.getpid(), 0)
    assert not processes._lives(one)
    assert processes._lives(processes._self())


def test_the_guard_cleans_up_when_it_is_released(tmp_path):
    folder = tmp_path / "private"
    folder.mkdir()
    process, _ = start(DEAF, "guarded")
    made = guard.Guard("guarded", folder, {**os.environ, processes.MARK: "guarded"})
    made.release()
    assert process.wait(5) in (-9, -15)
    assert not folder.exists()


def test_the_guard_cleans_up_when_its_maker_is_killed(tmp_path):
    folder = tmp_path / "private"
    folder.mkdir()
    maker, _ = start(
        "import os, time; from pathlib import Path; from heterofl_flwr.app.launch.guard import Guard\n"
        f"Guard('killed', Path({str(folder)!r}), os.environ); print('up', flush=True); time.sleep(60)",
        "maker",
    )
    process, _ = start("print('up', flush=True); import time; time.sleep(60)", "killed")
    maker.kill()
    maker.wait(5)
    process.wait(15)
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()
