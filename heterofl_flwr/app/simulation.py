"""A run in this process, from its start to its end."""

import logging
import math
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp

from heterofl_flwr.app.run_request import Request
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.client.state import NODE_STATES
from heterofl_flwr.common.errors import ConfigError, HeteroFLError, OutOfMemoryError
from heterofl_flwr.common.user_code import load_function
from heterofl_flwr.grids import LocalGrid, RayGrid
from heterofl_flwr.grids.queued import QueuedGrid
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.training.engines import MOST_ON_CPU
from heterofl_flwr.transport.compat import NO_FUNCTION, load_app
from heterofl_flwr.transport.packing import count_bytes
from heterofl_flwr.transport.relay import Relay

LOG = Path("logs", "flower.log")
"""Where in a run's folder its log is."""

FRAMES = 3
"""Stack frames shown of an error that is not this package's own."""

STEP = 500_000
"""Constant cost of a training step, in bytes of parameters with the same cost.

With the paper's CNN on a CPU, steps of 10 images at levels a to e take 29, 9, 3.4, 2.4 and 2.3 ms (0.5 MB: 2.3 ms).
"""

SHORT_OF_MEMORY = ("MemoryError", "low on memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Texts in the errors of clients out of memory: exceptions of Python and torch; Ray; cuBLAS."""


class RunError(HeteroFLError):
    """A run ended before it had done all that it was to do."""


def run_request(request: Request, *, log: bool = False) -> None:
    """Run an app; return when it has done all that it was to do, else raise ``RunError``.

    Flower's log is in the run's folder, and with ``log`` it is shown too.
    """
    path = request.out / LOG
    RunFolder(request.out).refuse_links()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): grant access, or choose another") from error
    try:
        with _flower_log(file, shown=log):
            _serve(request)
    except Exception as error:  # whatever an app raises is how its run ended
        raise RunError(_describe(error)) from error


def _load_server(request: Request) -> ServerApp:
    """Return the ServerApp; only another app's folder is put on ``sys.path``."""
    if request.app is None:
        return cast("ServerApp", load_function(request.server, "the ServerApp"))
    return cast("ServerApp", load_app(request.server, ConfigError, request.app))


def _serve(request: Request) -> None:
    """Run the ServerApp on a grid."""
    if request.app is not None:  # the grid loads its client
        sys.path.insert(0, str(request.app))
    with open_grid(request) as grid:
        server = _load_server(request)
        checked = Checked(grid)
        server(checked, Context(grid.run.run_id, 0, {}, RecordDict(), dict(request.config)))
    if request.app is not None:  # our own decides by itself which rounds are good
        checked.raise_for_rounds_without_a_result()


class Checked(Relay):
    """A grid that checks replies: one that reports a lack of memory ends the run, which can go on with fewer at once.

    Flower's own strategies pass over a round in which all clients failed, so those rounds are noted.
    """

    def __init__(self, grid: QueuedGrid) -> None:
        super().__init__(grid)
        self._queued = grid
        self._calls = 0
        self._good: Counter[tuple[str, str]] = Counter()
        self._bad: dict[tuple[str, str], list[str]] = {}

    def wait_for_replies(self, message_ids: Iterable[str], timeout: float | None = None) -> list[str]:
        """Wait for replies, as the grid does."""
        return self._queued.wait_for_replies(message_ids, timeout)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that the grid has."""
        replies = super().pull_messages(message_ids)
        return [self._check(reply, reply.metadata.group_id) for reply in replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages, and return their replies."""
        self._calls += 1
        replies = super().send_and_receive(messages, timeout=timeout)
        return [self._check(reply, f"call {self._calls}") for reply in replies]

    def raise_for_rounds_without_a_result(self) -> None:
        """Raise if all clients that were to train, or to evaluate, in a round failed."""
        for call, reasons in self._bad.items():
            if not self._good[call]:
                raise HeteroFLError(f"in a round all {len(reasons)} clients that were asked failed; {reasons[-1]}")

    def _check(self, reply: Message, group: str) -> Message:
        """Count a reply for those to messages of one kind that were sent together; return it."""
        call = group, reply.metadata.message_type
        if not reply.has_error():
            self._good[call] += 1
            return reply
        reason = reply.error.reason or "no reason given"
        if any(sign in reason for sign in SHORT_OF_MEMORY):
            raise OutOfMemoryError(
                f"a client ran out of memory: {reason}; resume the run with fewer clients at once (--parallel), or "
                f"use a smaller model or batch"
            )
        # Answers to queries, and to evaluate where an app does not, are what a strategy may do without.
        if not call[1].startswith(MessageType.QUERY) and NO_FUNCTION.format("evaluate") not in reason:
            self._bad.setdefault(call, []).append(reason)
        return reply


def _describe(error: Exception) -> str:
    """Return what an error says; of one that is not this package's own also its kind, and where it was raised."""
    if isinstance(error, HeteroFLError):
        return str(error)
    frames = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)[-FRAMES:]))
    return f"{type(error).__name__}: {error}\n{frames.rstrip()}"


def open_grid(request: Request) -> QueuedGrid:
    """Return the grid on which an app's clients run; it is the caller's to close."""
    states = {} if request.app is not None else {NODE_STATES: str(RunFolder(request.out).clients.resolve())}
    kind: Callable[..., QueuedGrid] = LocalGrid
    if request.grid == "ray":
        kind = partial(RayGrid, num_cpus=request.cpus, num_gpus=request.gpu_share, at_once=request.parallel)
    return kind(
        request.client,
        request.clients,
        cohort=cohort_limit(request),
        by_rate=request.app is not None or not load_workload(request.config).mixes_rates,
        run_config=request.config,
        cost=cost,
        node_config=lambda partition: states,
    )


def cohort_limit(request: Request) -> Callable[[Message], int]:
    """Return from a message to how many clients may train together."""
    if request.app is not None:
        return lambda message: 1
    workload = load_workload(request.config)
    # On a CPU, clients of larger models do not train together, and had better train on all cores.
    limit = 4 * MOST_ON_CPU if workload.device.type == "cpu" and workload.settings.engine.name == "auto" else math.inf
    return lambda message: workload.cohort if cost(message) - STEP <= limit else 1


def cost(message: Message) -> float:
    """Return how long a client takes beside others: the larger its model, the longer."""
    return STEP + sum(count_bytes(record) for record in message.content.values() if isinstance(record, ArrayRecord))


@contextmanager
def _flower_log(file: logging.FileHandler, *, shown: bool) -> Iterator[None]:
    """Let Flower and this package log to a file, and where ``shown`` also to where Flower does already."""
    flower, ours = logging.getLogger("flwr"), logging.getLogger("heterofl_flwr")
    handlers, level, propagate = (flower.handlers, ours.handlers), ours.level, ours.propagate
    flower.handlers = ours.handlers = [*flower.handlers, file] if shown else [file]
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
