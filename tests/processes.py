"""Processes of Flower on this machine, such as a SuperLink, for tests.

All processes carry a mark in their environment, by which they are ended. If this one is killed, the system ends those
that it has started (on Linux), and what Flower has started ends with these.
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from heterofl_flwr.common.errors import HeteroFLError

MARK = "HETEROFL_LAUNCH"
"""The environment variable that holds the mark."""

PATIENCE = 5.0
"""Seconds in which killed processes end."""

STARTUP = 300.0
POLL = 0.2

ROOT = str(Path(__file__).parents[1])
_C = ctypes.CDLL(None)  # loaded here, as a process that was just forked had better not


class Processes:
    """Processes with a private ``FLWR_HOME``; a context manager that ends them all."""

    def __init__(self, folder: Path, more: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._more = more or {}
        self._mark = secrets.token_hex(16)
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.home = Path(tempfile.mkdtemp(prefix="heterofl-"))
        self.environment = {**environment(self.home), **self._more, MARK: self._mark}
        return self

    def __exit__(self, *error: object) -> None:
        deadline = time.monotonic() + PATIENCE
        while (left := marked(self._mark)) and time.monotonic() < deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
        for started in self._started:
            started.wait(STARTUP)
        shutil.rmtree(self.home, ignore_errors=True)

    def wait_for(self, happened: Callable[[], object], what: str, seconds: float = STARTUP) -> None:
        """Wait until something has happened; raise if it does not."""
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                raise HeteroFLError(f"{what} does not come in {seconds:g} s; the logs are in {self.folder}")
            time.sleep(POLL)

    def numbers_of(self, name: str) -> list[int]:
        """Return the numbers of the processes that run a command, whoever of these started them."""
        found = []
        for process in marked(self._mark):
            with suppress(psutil.Error):  # it has ended meanwhile
                if any(name in word for word in process.cmdline()):
                    found.append(process.pid)
        return found

    def log(self, name: str) -> str:
        """Return what a process has printed."""
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def wait_for_superlink(self, process: subprocess.Popen[bytes], port: int, authority: Path | None = None) -> None:
        """Wait until a SuperLink answers, with TLS if there is a certificate authority; raise if it does not."""
        secure = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=authority))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)
        scheme = "https" if authority else "http"

        def has_started_or_ended() -> bool:
            with suppress(OSError), opener.open(f"{scheme}://127.0.0.1:{port}/health", timeout=10):
                return True
            return process.poll() is not None

        self.wait_for(has_started_or_ended, "the SuperLink")
        if process.poll() is not None:
            raise HeteroFLError(f"the SuperLink does not start:\n{self.log('superlink')[-2000:]}")

    def popen(
        self, words: Sequence[str], log: str, folder: Path | None = None, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start a command, maybe in a folder; its output goes to a file of this name."""
        with (self.folder / f"{log}.log").open("ab") as out:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**self.environment, **variables},
                cwd=folder,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        self._started.append(process)
        return process


def marked(mark: str) -> set[psutil.Process]:
    """Return all living processes with a mark, and their descendants: Ray's workers overwrite their environment."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if process.environ().get(MARK) == mark:
                found |= {process, *process.children(recursive=True)}
    return found


def _end_with_parent() -> None:
    """Let the system kill this process when the one that started it dies."""
    _C.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process at once, as a power cut does."""
    process.kill()
    process.wait()


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's processes, with a ``FLWR_HOME`` of their own."""
    first = {
        "PYTHONPATH": [ROOT, os.getcwd()],
        "PATH": [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)],
    }
    paths = {name: [*own, *filter(None, os.environ.get(name, "").split(os.pathsep))] for name, own in first.items()}
    return {
        **os.environ,
        **{name: os.pathsep.join(dict.fromkeys(own)) for name, own in paths.items()},
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_HOME": str(home),
        "RAY_TMPDIR": str(home),
        "PYTHONUNBUFFERED": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
        # Flower talks to itself over HTTP, and heeds proxies.
        "NO_PROXY": ",".join(filter(None, ["127.0.0.1,localhost", os.environ.get("NO_PROXY", "")])),
    }


def free_port() -> int:
    """Return a port that is free now; another process may take it before it is used."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
