"""What all tests share: quiet Flower, one thread, reproducible examples, and the optional shared folder."""

import atexit
import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Garbage is left until all tests are imported, and at exit: each collection would look at two million objects.
gc.disable()
atexit.register(gc.freeze)

# As in the Makefile, for those who call pytest themselves. Set before any test imports flwr or ray.
for variable, value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",  # of processes that tests start: threads of many would wait for one another
}.items():
    os.environ.setdefault(variable, value)

# Where a developer keeps data is no business of a test, which may expect that there are none.
for variable in ("HETEROFL_DATA", "HETEROFL_PAPER"):
    os.environ.pop(variable, None)

# What a shell starts in the background ignores interrupts, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread adds floats in one order, so results do not depend on the machine's number of cores.
torch.set_num_threads(1)

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

ROOT = Path(__file__).parents[1]


def pytest_collection_finish() -> None:
    """Leave what tests have imported out of garbage collection."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Leave out fsync: no test cuts the power, and on a busy disk it takes longer than what is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def gpu(request) -> None:
    """Skip tests marked ``gpu`` where there is none."""
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def flower_log() -> Iterator[None]:
    """Let Flower log as before once a test that made it quiet is over."""
    logger = logging.getLogger("flwr")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def identity() -> None:
    """Let this process be the server of run 7, as Flower asks of those that make messages without a grid."""
    from heterofl_flwr.transport.compat import SUPERLINK_NODE_ID, set_identity

    set_identity(7, SUPERLINK_NODE_ID)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder beside the repository with the paper's tables and data sets; skip where there is none."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the folder 'shared' beside the repository")
    return path


@pytest.fixture
def channels_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions of ``plain`` stay channels-first, as those in seats."""
    monkeypatch.setattr("heterofl_flwr.nn.memory_format.suits_channels_last", lambda model: False)
