"""A worker process, from both of its ends, and what is the same for Ray's actors.

A worker is a fresh interpreter, not a fork: a fork of a process that has used torch may hang. It imports the module of
the ClientApp and runs nothing of the script that started it. It leads a process group, so Ctrl-C reaches the script
alone, and what a client has started ends with its worker.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import cast

from flwr.app import Context
from flwr.clientapp import ClientApp

from heterofl_flwr.compat import ErrorCode, set_identity
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import Envelope, answer, failure, load
from heterofl_flwr.grids.payloads import Wire
from heterofl_flwr.grids.runner import Group
from heterofl_flwr.grids.worker_pool import GRACE, Worker, WorkerDeathError, ended_on_error

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
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and text, no shell
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), self._client_app],
                env={**os.environ, **worker_environment()},
                pass_fds=[theirs.fileno()],
                process_group=0,
                stdin=subprocess.DEVNULL,
            )
            self._connection = Connection(ours.detach())
        self._wire = Wire(self._connection)

    def load(self) -> bool:
        """Wait until the process has loaded the ClientApp; return whether that answers messages together."""
        if self._takes_groups is None:
            try:
                trouble, self._takes_groups = self._connection.recv()
            except (EOFError, OSError):
                trouble = f"it {self._end()} while it loaded client_app {self._client_app!r}"
            if trouble:
                self.stop()
                raise ConfigError(f"in a worker process: {trouble}")
        return bool(self._takes_groups)

    def has_died(self, ask: bool = False) -> bool:
        """Return whether the process has ended; ``stop`` must follow soon, before its number is another's."""
        return self._process.poll() is not None

    def run(self, group: Group, contexts: Sequence[Context]) -> list[Envelope]:
        """Let the process answer messages together."""
        try:
            self._wire.send(list(map(Envelope, group.messages, contexts)), group.slices)
            return [envelope for _ in contexts for envelope in self._wire.receive()]
        except (EOFError, OSError) as error:
            raise WorkerDeathError(self._end()) from error

    def kill(self) -> None:
        """End the process, and all that it has started, at once. Callable from any thread; ``stop`` must follow."""
        self._is_ended = True
        if self._process.returncode is None:
            self._kill_group()

    def stop(self) -> int:
        """Let an idle process leave by itself, end any other, and return the exit code."""
        if not self._connection.closed:
            self._connection.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
            self._kill_group()
        return self._process.wait()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self) -> str:
        """End the process, and say how it ended."""
        code = self.stop()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def serve(descriptor: int, client_app: str) -> None:
    """Answer messages until the other end closes; the process of a worker runs nothing else."""
    global _is_worker
    _is_worker = True
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with Connection(descriptor) as connection, suppress(EOFError, OSError):
        app, trouble = try_load(client_app)
        connection.send((trouble, hasattr(app, "train_cohort")))
        wire = Wire(connection)
        while app is not None:
            answer_each(app, wire.receive(), lambda own: wire.send([own]))  # while it waits, it holds no model


def _end_with(parent: int) -> None:
    """End this process, busy or not, and all that it has started, when the process that started it is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


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
