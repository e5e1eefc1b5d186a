"""A worker process, from both of its ends.

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
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import cast

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import RAISED, Outcome, call, call_cohort, failure, load
from heterofl_flwr.grids.payloads import Letter, Shared, Wire
from heterofl_flwr.grids.pool import GRACE, Worker, WorkerDeathError
from heterofl_flwr.grids.runner import Group

_START = "import sys; from heterofl_flwr.grids.worker import serve; serve(int(sys.argv[1]), sys.argv[2])"
_inside = False


def is_inside() -> bool:
    """Return whether this process is a worker."""
    return _inside


def start_processes(client_app: str, processes: int) -> tuple[list["Process"], bool]:
    """Start workers together; wait until all have loaded the ClientApp, and return whether it answers groups."""
    if _inside:
        raise ConfigError(
            "processes: a worker process cannot have worker processes of its own. Expected the script that makes "
            'this grid to make it under `if __name__ == "__main__":`'
        )
    workers: list[Process] = []
    try:
        for _ in range(processes):
            workers.append(Process(client_app))
        takes_groups = [worker.ready() for worker in workers]
    except BaseException:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.stop()
        raise
    return workers, all(takes_groups)


class Process(Worker):
    """The end of this process: a process that answers one group at a time, and is replaced when it has died."""

    def __init__(self, client_app: str) -> None:
        self._client_app = client_app
        self._killed = False
        self._start()

    def ready(self) -> bool:
        """Wait until the process has loaded the ClientApp; return whether that answers messages together."""
        try:
            trouble, takes_groups = self._connection.recv()
        except (EOFError, OSError):
            trouble, takes_groups = f"it {_ending(self.stop())} while it loaded client_app {self._client_app!r}", False
        if trouble:
            self.stop()
            raise ConfigError(f"in a worker process: {trouble}")
        return bool(takes_groups)

    def revive(self) -> None:
        """Replace the process where it is gone."""
        if self._killed or self._has_ended():
            self.stop()
            self._killed = False
            self._start()
            if self._killed:  # meanwhile, from another thread, which did not know the new process
                self.kill()
            self.ready()

    check = revive

    def run(self, group: Group, contexts: Sequence[Context]) -> list[Outcome]:
        """Let the process answer messages together."""
        try:
            self._wire.send([(*pair, "") for pair in zip(group.messages, contexts, strict=True)], group.shared)
            return [Outcome(*letter) for _ in contexts for letter in self._wire.receive()]
        except (EOFError, OSError) as error:
            raise WorkerDeathError(_ending(self.stop())) from error

    def share(self, groups: Sequence[Group]) -> None:
        """Let each process be sent the large arrays that messages have in common but once."""
        shared = Shared.among(message for group in groups for message in group.messages)
        for group in groups:
            group.shared = shared

    def kill(self) -> None:
        """End the process, and all that it has started, at once. Callable from any thread; ``stop`` must follow."""
        self._killed = True
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> int:
        """Let an idle process leave by itself, end any other, and return the exit code."""
        self._connection.close()
        deadline = time.monotonic() + GRACE
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.005)
        self.kill()
        return self._process.wait()

    def _start(self) -> None:
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

    def _has_ended(self) -> bool:
        """Return whether the process has ended. It is not reaped, so its group's number stays its own."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def serve(descriptor: int, client_app: str) -> None:
    """Answer messages until the other end closes; the process of a worker runs nothing else."""
    global _inside
    _inside = True
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with Connection(descriptor) as connection, suppress(EOFError, OSError):
        app, trouble = try_load(client_app)
        connection.send((trouble, hasattr(app, "train_cohort")))
        wire = Wire(connection)
        while app is not None:
            _serve_one(wire, app)  # while it waits, a worker holds no model


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


def _serve_one(wire: Wire, app: ClientApp) -> None:
    """Answer one group of messages."""
    letters = wire.receive()
    for letter, outcome in zip(letters, answer(app, letters), strict=True):
        _send(wire, letter[0], outcome)


def _send(wire: Wire, message: Message, outcome: Outcome) -> None:
    """Send an outcome, or why it cannot be sent."""
    try:
        wire.send([letter_of(outcome)])
    except OSError:
        raise
    except Exception as error:  # it does not pickle; nothing was sent yet
        wire.send([letter_of(unsendable(message, error))])


def unsendable(message: Message, error: Exception) -> Outcome:
    """Return the outcome in place of one that does not pickle."""
    return failure(message, RAISED, f"{type(error)}:<'{error}'>", traceback.format_exc())


def letter_of(outcome: Outcome) -> Letter:
    """Return how an outcome travels."""
    return outcome.reply, outcome.context, outcome.trouble


def answer(app: ClientApp, letters: Sequence[Letter]) -> list[Outcome]:
    """Hand the app messages that came together, each as its node."""
    messages, contexts = [letter[0] for letter in letters], [cast(Context, letter[1]) for letter in letters]
    return call_cohort(app, messages, list(map(_enter, contexts))) or [
        call(app, message, _enter(context)) for message, context in zip(messages, contexts, strict=True)
    ]


def _enter(context: Context) -> Context:
    """Make this process the node's, for Flower."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = context.run_id, context.node_id, 1
    return context


def worker_environment() -> dict[str, str]:
    """Return what a worker's environment adds: the same modules can be imported, and each library uses one thread."""
    modules = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**threads, "PYTHONPATH": modules}


def _ending(code: int) -> str:
    """Say how a process ended."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
