"""A SuperLink of one's own: a private home, a free port, the right environment, and an end."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from heterofl_flwr.app.launch.guard import Guard
from heterofl_flwr.app.launch.log import TAIL, lines_of
from heterofl_flwr.app.launch.processes import MARK
from heterofl_flwr.errors import HeteroFLError

STARTUP = 60.0  # seconds; it takes one on an idle machine
SHUTDOWN = 5.0
TRIES = 3
LONGEST_FOLDER = 30  # characters: Ray's sockets lie below, and their paths may have 107

_CONNECTION = """[superlink]
default = "own"

[superlink.own]
address = "127.0.0.1:{port}"
insecure = true
"""


class SuperLink:
    """Starts Flower's SuperLink for one run; a context manager that ends all that was started meanwhile.

    Parameters
    ----------
    logs : Path
        Folder for its log.
    more : Mapping[str, str] | None
        Further variables for the environment of all processes.
    """

    def __init__(self, logs: Path, more: Mapping[str, str] | None = None) -> None:
        self._more = dict(more or {})
        self._mark = secrets.token_hex(16)
        self._log = logs / "superlink.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Start it, and wait until it answers."""
        self.home = Path(tempfile.mkdtemp(prefix="heterofl-", dir=_short_folder()))
        self.environment = environment(self.home, self._mark, self._more)
        self._guard = Guard(self._mark, self.home, self.environment)
        try:
            self._start()
        except BaseException:
            self._guard.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it and everything else that carries this run's mark."""
        if self._process and all(child is self._process or child.poll() is not None for child in self._children):
            self._process.terminate()  # with no run under way, it ends what it started by itself
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(SHUTDOWN)
        self._guard.release()
        for child in self._children:
            child.wait(SHUTDOWN)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    def flwr(self, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start Flower's command ``flwr`` with this SuperLink; its output goes to ``log``."""
        with log.open("ab") as out:
            return self._popen("flwr", arguments, out.fileno())

    def status(self, run_id: str) -> tuple[str, str]:
        """Return a run's true status, such as ``finished:completed``, and what Flower says about it."""
        return status_of(run_id, self.environment)

    def _start(self) -> None:
        for _ in range(TRIES):  # between the choice of a free port and its use, another may take it
            port = free_port()
            (self.home / "config.toml").write_text(_CONNECTION.format(port=port), encoding="utf-8")
            with self._log.open("ab") as out:
                options = ["--insecure", "--simulation", "--isolation", "subprocess"]
                self._process = self._popen(
                    "flower-superlink", [*options, "--host", "127.0.0.1", "--port", str(port)], out.fileno()
                )
            if self._answers(port):
                return
        raise HeteroFLError("Flower's SuperLink does not start:\n  " + "\n  ".join(lines_of(self._log)[-TAIL:]))

    def _popen(self, name: str, arguments: Sequence[str], out: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603  # Flower's own commands
            [command(name, self.environment), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=self.environment,
            start_new_session=True,  # Ctrl-C in a terminal shall reach the launcher alone
        )
        self._children.append(process)
        return process

    def _answers(self, port: int) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + STARTUP
        while self.alive and time.monotonic() < deadline:
            with suppress(OSError), opener.open(f"http://127.0.0.1:{port}/health", timeout=1):
                return True
            time.sleep(0.1)
        return False


def environment(home: Path, mark: str, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a run's processes, ``more`` included."""
    package = str(Path(__file__).parents[3])
    paths = [package, os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    scripts = [sysconfig.get_path("scripts"), str(Path(sys.executable).parent)]
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return {
        **os.environ,
        **quiet,
        **more,
        MARK: mark,
        "FLWR_HOME": str(home),
        "RAY_TMPDIR": str(home),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join(dict.fromkeys([*scripts, *os.environ.get("PATH", "").split(os.pathsep)])),
        # Flower talks to itself over HTTP, and heeds proxies.
        "NO_PROXY": ",".join(filter(None, ["127.0.0.1,localhost", os.environ.get("NO_PROXY", "")])),
    }


def status_of(run_id: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """Return a run's status, and what Flower says about it, from the SuperLink of an environment's ``FLWR_HOME``."""
    words = [command("flwr", environment), "ls", "--run-id", run_id, "--format", "json"]
    done = subprocess.run(  # noqa: S603  # Flower's own command
        words, capture_output=True, text=True, check=False, env=dict(environment), timeout=60
    )
    try:
        run = json.loads(done.stdout)["runs"][0]
        return str(run["status"]), str(run["status-details"])
    except (ValueError, KeyError, IndexError):
        return "unknown", (done.stdout + done.stderr).strip()


def command(name: str, environment: Mapping[str, str]) -> str:
    """Return the path of one of Flower's commands."""
    path = shutil.which(name, path=environment["PATH"])
    if path is None:
        raise HeteroFLError(f"Flower's command {name} is not installed: pip install 'flwr[simulation]'")
    return path


def _short_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= LONGEST_FOLDER else "/tmp"  # noqa: S108  # mkdtemp makes a private folder in it


def free_port() -> int:
    """Return a port that is free now; another process may take it before it is used."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
