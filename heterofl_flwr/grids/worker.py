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
from heterofl_flwr.grids.apps import CRASHED, NOT_LOADED, RAISED, Outcome, call, call_cohort, failure, load
from heterofl_flwr.grids.wire import NOTHING, Letter, Shared, Wire

GRACE = 2.0  # seconds that an idle worker has to leave by itself

_START = "import sys; from heterofl_flwr.grids.worker import serve; serve(int(sys.argv[1]), sys.argv[2])"
_inside = False


def is_inside() -> bool:
    """Return whether this process is a worker."""
    return _inside


class Worker:
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

    def run(self, messages: Sequence[Message], contexts: Sequence[Context], shared: Shared = NOTHING) -> list[Outcome]:
        """Let the process answer messages together; where it dies of it, return the error reply of each."""
        try:
            self._revive()
        except ConfigError as error:
            return [failure(message, NOT_LOADED, str(error)) for message in messages]
        try:
            self._wire.send([(*pair, "") for pair in zip(messages, contexts, strict=True)], shared)
            return [Outcome(*letter) for _ in messages for letter in self._wire.receive()]
        except (EOFError, OSError):
            ending = _ending(self.stop())
            return [
                failure(message, CRASHED, f"The process that ran {_described(context, len(messages) - 1)} {ending}.")
                for message, context in zip(messages, contexts, strict=True)
            ]

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
                env=_environment(),
                pass_fds=[theirs.fileno()],
                process_group=0,
                stdin=subprocess.DEVNULL,
            )
            self._connection = Connection(ours.detach())
            self._wire = Wire(self._connection)

    def _revive(self) -> None:
        """Replace the process where it is gone."""
        if self._killed or self._has_ended():
            self.stop()
            self._killed = False
            self._start()
            if self._killed:  # meanwhile, from another thread, which did not know the new process
                self.kill()
            self.ready()

    def _has_ended(self) -> bool:
        """Return whether the process has ended. It is not reaped, so its group's number stays its own."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def serve(descriptor: int, client_app: str) -> None:
    """Answer messages until the other end closes; the process of a worker runs nothing else."""
    global _inside
    _inside = True
    with Connection(descriptor) as connection, suppress(EOFError, OSError):
        try:
            app = load(client_app)
        except BaseException as error:
            connection.send((str(error) if isinstance(error, ConfigError) else traceback.format_exc(), False))
            return
        connection.send(("", hasattr(app, "train_cohort")))
        wire = Wire(connection)
        while True:
            _serve_one(wire, app)  # while it waits, a worker holds no model


def _serve_one(wire: Wire, app: ClientApp) -> None:
    """Answer one group of messages."""
    letters = wire.receive()
    messages, contexts = [letter[0] for letter in letters], [cast(Context, letter[1]) for letter in letters]
    outcomes = call_cohort(app, messages, list(map(_enter, contexts))) or [
        call(app, message, _enter(context)) for message, context in zip(messages, contexts, strict=True)
    ]
    for message, outcome in zip(messages, outcomes, strict=True):
        _send(wire, message, outcome)


def _send(wire: Wire, message: Message, outcome: Outcome) -> None:
    """Send an outcome, or why it cannot be sent."""
    try:
        wire.send([_letter(outcome)])
    except OSError:
        raise
    except Exception as error:  # it does not pickle; nothing was sent yet
        wire.send([_letter(failure(message, RAISED, f"{type(error)}:<'{error}'>", traceback.format_exc()))])


def _letter(outcome: Outcome) -> Letter:
    return outcome.reply, outcome.context, outcome.trouble


def _enter(context: Context) -> Context:
    """Make this process the node's, for Flower."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = context.run_id, context.node_id, 1
    return context


def _environment() -> dict[str, str]:
    """Return the environment of a worker: the same modules can be imported, and each library uses one thread."""
    modules = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": modules}


def _described(context: Context, others: int) -> str:
    """Name the node that a process ran, maybe among others."""
    node = f"node {context.node_id} (partition {context.node_config.get('partition-id')})"
    return f"{node} and {others} others" if others else node


def _ending(code: int) -> str:
    """Say how a process ended."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
