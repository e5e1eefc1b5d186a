"""A worker process, from both of its ends, and what is the same for Ray's actors.

A worker is a fresh interpreter, not a fork: a fork of a process that has used torch may hang. It imports the module of
the ClientApp and runs nothing of the script that started it. It leads a process group, so Ctrl-C reaches the script
alone, and what a client has started ends with its worker.

The two ends are connected through a port of this machine's own address, as Linux, macOS and Windows all have it. The
worker reads a key from its standard input, which proves that it is the worker.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from hmac import compare_digest
from multiprocessing.connection import Connection
from typing import IO, cast

import psutil
from flwr.app import Context
from flwr.clientapp import ClientApp

from heterofl_flwr.compat import ErrorCode, set_identity
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import Envelope, answer, failure, load
from heterofl_flwr.grids.payloads import Wire
from heterofl_flwr.grids.runner import Group
from heterofl_flwr.grids.worker_pool import GRACE, Worker, WorkerDeathError, ended_on_error

HOST = "127.0.0.1"
KEY = 32
"""Bytes of the key."""

POLL = 0.2
"""Seconds until it is seen that a worker has died before it connected."""

SILENCE = 5.0
"""Seconds that whoever connects has to show the key."""

_START = "import sys; from heterofl_flwr.grids.processes import serve; serve(int(sys.argv[1]), sys.argv[2])"
_is_worker = False


def start_processes(client_app: str, processes: int) -> tuple[list["Process"], bool]:
    """Start workers together; wait until all have loaded the ClientApp, and return whether it answers groups."""
    if _is_worker:
        raise ConfigError(
            "processes: a worker process cannot have worker processes of its own. Expected the script that makes "
            'this grid to make it under `if __name__ == "__main__":`'
        )
    workers: list[Process] = []
    with ended_on_error(workers):
        for _ in range(processes):
            workers.append(Process(client_app))
        takes_groups = [worker.load() for worker in workers]
    return workers, all(takes_groups)


class Process(Worker):
    """The end of this process: a process that answers one group at a time."""

    def __init__(self, client_app: str) -> None:
        self._client_app = client_app
        super().__init__()

    def start(self) -> None:
        """Start the process."""
        self._takes_groups: bool | None = None  # until it has loaded the ClientApp
        self._connection: Connection | None = None  # until it has connected
        self._is_stopped = False
        self._key = secrets.token_bytes(KEY)
        self._server = socket.create_server((HOST, 0))
        self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and text, no shell
            [sys.executable, "-P", "-c", _START, str(self._server.getsockname()[1]), self._client_app],
            env={**os.environ, **worker_environment()},
            process_group=0,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # what Windows has in its place
            stdin=subprocess.PIPE,
        )
        with suppress(OSError), cast(IO[bytes], self._process.stdin) as stdin:  # it may have died already
            stdin.write(self._key)

    def load(self) -> bool:
        """Wait until the process has loaded the ClientApp; return whether that answers messages together."""
        if self._takes_groups is None:
            try:
                self._connection = self._connection or self._accept()
                self._wire = Wire(self._connection)
                trouble, self._takes_groups = self._connection.recv()
            except (EOFError, OSError):
                trouble = f"it {self._end()} while it loaded client_app {self._client_app!r}"
            if trouble:
                self.stop()
                raise ConfigError(f"in a worker process: {trouble}")
        return bool(self._takes_groups)

    def _accept(self) -> Connection:
        """Wait until the process connects; whoever else does so does not know the key."""
        with self._server:
            self._server.settimeout(POLL)
            while self._process.poll() is None:
                try:
                    found, _ = self._server.accept()
                except TimeoutError:
                    continue
                if _shows_key(found, self._key):
                    return _connect(found)
        raise EOFError

    def has_died(self, ask: bool) -> bool:
        """Return whether the process has ended; ``stop`` must follow soon, before its number is another's."""
        return self._process.poll() is not None

    def run(self, group: Group, contexts: Sequence[Context]) -> list[Envelope]:
        """Let the process answer messages together."""
        try:
            self._wire.send(list(map(Envelope, group.messages, contexts)), group.slices)
            return [envelope for _ in contexts for envelope in self._wire.receive()]
        except (EOFError, OSError) as error:
            raise WorkerDeathError(self._end()) from error
        except Exception:
            self.kill()  # replies that it has yet to send would be taken for those to its next messages
            raise

    def kill(self) -> None:
        """End the process, and all that it has started, at once. Callable from any thread; ``stop`` must follow."""
        self._is_ended = True
        if self._process.returncode is None:
            kill_with_children(self._process.pid)

    def stop(self) -> int:
        """Let an idle process leave by itself, end any other, and return the exit code."""
        if not self._is_stopped:
            self._is_stopped = True
            self._server.close()
            if self._connection is not None:
                self._connection.close()
                self._wait_for_idle()
            kill_with_children(self._process.pid)
        return self._process.wait()

    def _wait_for_idle(self) -> None:
        """Let an idle process leave, where what it has started can be found when it is gone."""
        if hasattr(os, "killpg"):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)

    def _end(self) -> str:
        """End the process, and say how it ended."""
        code = self.stop()
        left = "" if hasattr(os, "killpg") else "; what it had started may still run"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}{left}"


def _shows_key(found: socket.socket, key: bytes) -> bool:
    """Return whether whoever has connected sends the key, and close the connection if not."""
    found.settimeout(SILENCE)
    try:
        is_worker = compare_digest(found.recv(len(key)), key)
    except OSError:
        is_worker = False
    if not is_worker:
        found.close()
    return is_worker


def _connect(own: socket.socket) -> Connection:
    """Return a connection over a socket, which sends every piece at once."""
    own.settimeout(None)
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(own.detach())


def kill_with_children(pid: int) -> None:
    """End a worker process, and all that it has started, at once.

    Where there are process groups, these are the worker's group. Windows has none, and knows only whom a living process
    has started, so there what a worker leaves behind that has died by itself is not found.
    """
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # the latter on macOS, if all of the group have ended
            os.killpg(pid, signal.SIGKILL)
        return
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for own in (*first.children(recursive=True), first):
            with suppress(psutil.NoSuchProcess):
                own.kill()


def serve(port: int, client_app: str) -> None:
    """Answer messages until the other end closes; the process of a worker runs nothing else."""
    global _is_worker
    _is_worker = True
    key = sys.stdin.buffer.read(KEY)
    threading.Thread(target=_end_with, args=(psutil.Process(os.getppid()),), daemon=True).start()
    with suppress(EOFError, OSError):
        own = socket.create_connection((HOST, port))
        own.sendall(key)
        with _connect(own) as connection:
            app, trouble = try_load(client_app)
            connection.send((trouble, hasattr(app, "train_cohort")))
            wire = Wire(connection)
            while app is not None:
                answer_each(app, wire.receive(), lambda own: wire.send([own]))  # while it waits, it holds no model


def _end_with(parent: psutil.Process) -> None:
    """End this process, busy or not, and all that it has started, when the process that started it is gone."""
    while os.getppid() == parent.pid and parent.is_running():  # Windows never changes the first
        time.sleep(1.0)
    kill_with_children(os.getpid())


def try_load(client_app: str) -> tuple[ClientApp | None, str]:
    """Return the ClientApp, or why it cannot be loaded."""
    try:
        return load(client_app), ""
    except BaseException as error:
        return None, str(error) if isinstance(error, ConfigError) else traceback.format_exc()


def answer_each(app: ClientApp, envelopes: Sequence[Envelope], send: Callable[[Envelope], object]) -> None:
    """Answer messages that came together, each as its node; an answer that does not pickle fails alone."""
    messages, contexts = [own.message for own in envelopes], [cast(Context, own.context) for own in envelopes]
    answers = answer(app, messages, contexts, lambda context: set_identity(context.run_id, context.node_id))
    for message, own in zip(messages, answers, strict=True):
        try:
            send(own)
        except OSError:
            raise
        except Exception as error:  # nothing was sent yet
            send(failure(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, error, traceback.format_exc()))


def worker_environment() -> dict[str, str]:
    """Return what a worker's environment adds: the same modules can be imported, and each library uses one thread."""
    modules = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**threads, "PYTHONPATH": modules}
