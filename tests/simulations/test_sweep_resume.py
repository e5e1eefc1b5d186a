"""A sweep that is killed half-way goes on where it was, repeats nothing, and ends as if nothing had happened."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from heterofl_flwr.report import RunFolder
from tests.simulations.sweeping import LONGEST, SHRUNKEN, finish, planned, start

SWEEP = ("mix=a-e", "assignment=fix,dynamic", *SHRUNKEN, "report=files", "run.callbacks=''")
HALF = 2  # rounds of the second job after which the sweep is killed

pytestmark = pytest.mark.slow


def complete(folder: Path, *arguments: str) -> str:
    status, out = finish(start(folder, *arguments))
    assert status == 0, out
    return out


def kill_in_second_job(folder: Path, *arguments: str) -> tuple[Path, Path]:
    """Let a sweep do its first job and some rounds of its second, and kill it; return both folders."""
    first, second = (folder / name for name in planned(*arguments))
    process = start(folder, *arguments)
    try:
        deadline = time.monotonic() + LONGEST
        while rounds(second) < HALF:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=LONGEST)
    return first, second


def rounds(path: Path) -> int:
    history = path / "history.jsonl"
    return history.read_text(encoding="utf-8").count("\n") if history.exists() else 0


def stamps(path: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def results(folder: Path, names: Sequence[str]) -> dict[str, object]:
    """Return all that runs measured and made, without times."""
    found: dict[str, object] = {}
    for name in names:
        found[name] = [{**record.to_json(), "seconds": 0.0} for record in RunFolder(folder / name).history()]
        found |= {f"{name}/{own.name}": own.read_bytes() for own in (folder / name / "models").glob("*.safetensors")}
    return found


def check(tmp_path: Path, killed: Sequence[str], uninterrupted: Sequence[str]) -> None:
    folder = tmp_path / "killed"
    first, second = kill_in_second_job(folder, *killed)
    assert RunFolder(first).about()["finished"]
    assert not RunFolder(second).about()["finished"]
    before = stamps(first)

    out = complete(folder, *killed)
    assert "2 jobs in" in out
    assert "1 done before" in out
    assert f"\njob {first.name}; " in out
    assert f"\njob {second.name}; " in out
    assert out.count("\ndone before\n") == 1
    assert stamps(first) == before
    assert len(RunFolder(first).about()["starts"]) == 1
    assert len(RunFolder(second).about()["starts"]) == 2

    complete(tmp_path / "whole", *uninterrupted)
    names = list(planned(*killed))
    ours = results(folder, names)
    assert len(ours) == len(names) * 4  # a history, both models, and the moments of the larger one
    assert ours == results(tmp_path / "whole", names)


def test_on_the_local_grid_whatever_the_number_of_processes(tmp_path):
    sweep = (*SWEEP, "num-rounds=6")
    check(tmp_path, [*sweep, "engine.parallel=2"], sweep)


@pytest.mark.simulation
def test_on_ray_and_then_equal_to_the_local_grid(tmp_path):
    sweep = (*SWEEP, "num-rounds=4", "engine.clients=4")
    check(tmp_path, [*sweep, "engine=ray", "engine.parallel=2"], sweep)
