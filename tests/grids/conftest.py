"""What the tests of grids share: ClientApps in importable modules, and messages."""

import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from heterofl_flwr.grids import LocalGrid, RayGrid

sys.path.insert(0, str(Path(__file__).parent / "apps"))  # as for a user whose app lies beside the script


@pytest.fixture
def ask() -> Callable[..., Message]:
    """Return a function that makes a message to a node: a query action of ``odd_clients``, and its configuration."""

    def make(node_id: int, action: str, **config) -> Message:
        return Message(RecordDict({"config": ConfigRecord(config)}), node_id, f"query.{action}")

    return make


@pytest.fixture
def grid() -> Iterator[LocalGrid]:
    """Return a grid of four nodes in this process."""
    with LocalGrid("odd_clients:app", 4) as grid:
        yield grid


@pytest.fixture(scope="package")
def actors(machine) -> Iterator[RayGrid]:
    """Return a grid of four nodes and two actors, shared by all tests."""
    with RayGrid("odd_clients:app", 4, at_once=2) as grid:
        yield grid


@pytest.fixture(scope="package")
def machine() -> Iterator[ModuleType]:
    """Let this process use a Ray that believes to have eight cores and two GPUs."""
    import ray

    from heterofl_flwr.grids.ray_session import fewer_processes, shut_down

    folder = tempfile.mkdtemp(prefix="ray-")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch, fewer_processes():
        warnings.simplefilter("ignore")
        patch.delenv("OMP_NUM_THREADS")  # which the grid sets
        patch.setenv("RAY_worker_niceness", "0")  # by default other tests' processes come before Ray's
        ray.init(num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    yield ray
    shut_down()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def gone() -> Callable[[Iterable[int]], bool]:
    """Return a function that says whether processes are gone in two minutes; zombies are."""

    def runs(pid: int) -> bool:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    def wait(pids: Iterable[int]) -> bool:
        pids, deadline = list(pids), time.monotonic() + 120
        while (left := any(map(runs, pids))) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not left

    return wait
