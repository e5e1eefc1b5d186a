"""``run_request``: run a ServerApp and its clients on this machine or a Ray cluster."""

import logging
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import cast

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp

from heterofl_flwr.app.client_resources import open_grid
from heterofl_flwr.app.request import Request
from heterofl_flwr.app.workload import load_workload, shared_data
from heterofl_flwr.common.errors import ConfigError, HeteroFLError, OutOfMemoryError, printable, without_numbers
from heterofl_flwr.common.files import make_folder
from heterofl_flwr.common.user_code import load_function
from heterofl_flwr.grids import LocalGrid
from heterofl_flwr.grids.queued import QueuedGrid
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.transport.compat import NO_FUNCTION, load_app
from heterofl_flwr.transport.exchange import cause_of
from heterofl_flwr.transport.relay import Relay

LOG = Path("logs", "flower.log")
"""Path of the log, relative to the run's folder."""

FRAMES = 3
"""Number of stack frames in the text about an error that is no ``HeteroFLError``."""

SHORT_OF_MEMORY = ("MemoryError", "low on memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Texts that occur in out-of-memory errors: of Python and torch, of Ray, of CUDA as it starts, and of cuBLAS."""


class RunError(HeteroFLError):
    """Raised if a run fails before its end."""


def run_request(request: Request, *, log: bool = False) -> None:
    """Run an app to its end; raise ``RunError`` if it fails, ``ConfigError`` if the run's folder has links.

    Print the app's log if ``log`` is True, otherwise only warnings.
    """
    path = request.out / LOG
    RunFolder(request.out).refuse_links()
    make_folder(path.parent)
    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    try:
        with _flower_log(file, shown=log):
            _serve(request)
    except Exception as error:  # an app may raise any error
        raise RunError(_describe(error)) from error


def _load_server(request: Request) -> ServerApp:
    if request.app is None:
        return cast("ServerApp", load_function(request.server, "the ServerApp"))
    return cast("ServerApp", load_app(request.server, ConfigError, request.app))


def _serve(request: Request) -> None:
    if request.app is not None:  # the grid imports the ClientApp from this folder
        sys.path.insert(0, str(request.app))
    is_shared = request.app is None and request.grid == "ray"
    share = shared_data(load_workload(request.config).settings.data) if is_shared else nullcontext()
    with share, open_grid(request) as grid:
        server = _load_server(request)
        checked = Checked(grid)
        server(checked, Context(grid.run.run_id, 0, {}, RecordDict(), dict(request.config)))
    if request.app is not None:  # this package's app checks its rounds itself
        checked.raise_for_rounds_without_a_result()


class Checked(Relay):
    """Grid that checks the replies.

    It raises ``OutOfMemoryError`` if a client ran out of memory. It records other errors in training and evaluation for
    ``raise_for_rounds_without_a_result``. That an app has no function for evaluation is no error.
    """

    def __init__(self, grid: QueuedGrid) -> None:
        super().__init__(grid)
        self._queued = grid
        self._calls = 0
        self._good: Counter[tuple[str, str]] = Counter()
        self._bad: dict[tuple[str, str], list[str]] = {}

    def wait_for_replies(self, message_ids: Iterable[str], timeout: float | None = None) -> list[str]:
        """Wait at most ``timeout`` seconds for replies; return the ids of answered messages."""
        return self._queued.wait_for_replies(message_ids, timeout)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        replies = super().pull_messages(message_ids)
        return [self._check(reply, reply.metadata.group_id) for reply in replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return their replies."""
        self._calls += 1
        replies = super().send_and_receive(messages, timeout=timeout)
        return [self._check(reply, f"call {self._calls}") for reply in replies]

    def raise_for_rounds_without_a_result(self) -> None:
        """Raise ``HeteroFLError`` if every client failed in the training or the evaluation of some round."""
        for call, reasons in self._bad.items():
            if not self._good[call]:
                raise HeteroFLError(f"in a round all clients ({len(reasons)}) failed; {reasons[-1]}")

    def _check(self, reply: Message, group: str) -> Message:
        call = group, reply.metadata.message_type
        if not reply.has_error():
            self._good[call] += 1
            return reply
        reason = reply.error.reason or "no reason given"
        if any(sign in reason for sign in SHORT_OF_MEMORY):
            fewer = "resume with fewer clients at once (--parallel; in a sweep, engine.parallel), or "
            raise OutOfMemoryError(
                f"a client ran out of memory: {cause_of(reason)}; "
                f"{'' if isinstance(self._queued, LocalGrid) else fewer}start a run with a smaller model, batch or "
                f"cohort (engine.cohort)"
            )
        # A strategy can do without answers to queries, and without evaluation if the app has no function for it.
        if not call[1].startswith(MessageType.QUERY) and NO_FUNCTION.format("evaluate") not in reason:
            self._bad.setdefault(call, []).append(cause_of(reason))
        return reply


def _describe(error: Exception) -> str:
    if isinstance(error, HeteroFLError):
        return str(error)
    frames = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)[-FRAMES:]))
    return f"{type(error).__name__}: {error}\n{frames.rstrip()}"


class Warnings(logging.Handler):
    """Handler that prints warnings. Of those about rounds that differ only in numbers, it prints the first."""

    def __init__(self) -> None:
        super().__init__()
        self._of_rounds: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print ``record`` if it is a warning, and not a repeated one about a round."""
        text = record.getMessage()
        if record.levelno != logging.WARNING or (cause := without_numbers(text)) in self._of_rounds:
            return
        if text.startswith("round "):
            self._of_rounds.add(cause)
        print(printable(f"warning: {text}"), file=sys.stderr, flush=True)


@contextmanager
def _flower_log(file: logging.FileHandler, *, shown: bool) -> Iterator[None]:
    flower, ours = logging.getLogger("flwr"), logging.getLogger("heterofl_flwr")
    handlers, level, propagate = (flower.handlers, ours.handlers), ours.level, ours.propagate
    flower.handlers = ours.handlers = [*flower.handlers, file] if shown else [file, Warnings()]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    try:
        yield
    except BaseException:
        file.handle(logging.makeLogRecord({"msg": traceback.format_exc(), "args": None}))
        raise
    finally:
        flower.handlers, ours.handlers = handlers
        ours.setLevel(level)
        ours.propagate = propagate
        file.close()
