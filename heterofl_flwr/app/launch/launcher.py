"""One run from its start to its true end."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM, signal
from threading import current_thread, main_thread
from types import FrameType

from heterofl_flwr.app.launch import log, memory
from heterofl_flwr.app.launch.bundle import write_app, write_overrides
from heterofl_flwr.app.launch.progress import Rounds
from heterofl_flwr.app.launch.request import Request, Share
from heterofl_flwr.app.launch.superlink import SuperLink
from heterofl_flwr.app.own_states import VARIABLE
from heterofl_flwr.methods.callbacks import RoundRecord
from heterofl_flwr.report import RunFolder

PAUSE = 0.25
PATIENCE = 30.0  # seconds for a status after Flower's log has ended

Watch = Callable[[list[RoundRecord]], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    status
        ``completed``, ``failed`` or ``stopped``.
    cause
        Why it did not complete.
    trace
        The end of the traceback that belongs to it.
    shortage
        The lack of memory that it was, if it was one.
    """

    status: str
    cause: str = ""
    trace: tuple[str, ...] = ()
    shortage: memory.Shortage | None = None

    @property
    def good(self) -> bool:
        """Whether the run did all that it was to do."""
        return self.status == "completed"


def launch(request: Request, watch: Watch = lambda records: None) -> Outcome:
    """Run an app with ``flwr run`` on a SuperLink of its own; return when it has truly ended.

    Parameters
    ----------
    request : Request
        What is to be run.
    watch : callable
        Called often, with the rounds that were added to the run's history meanwhile.
    """
    logs = request.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    output = logs / "flower.log"
    output.unlink(missing_ok=True)
    rounds = Rounds(request.out / "history.jsonl")
    with _terminable(), SuperLink(logs, states_of(request)) as superlink:
        process = superlink.flwr(_arguments(request, superlink.home), output)
        while process.poll() is None and superlink.alive:
            time.sleep(PAUSE)
            new = list(rounds.new())
            watch(new)
            short = next(filter(None, map(memory.in_round, new)), None)
            if short:
                return Outcome("failed", str(short), shortage=short)
        watch(list(rounds.new()))
        return _outcome(superlink, output)


def _arguments(request: Request, home: Path) -> list[str]:
    """Return the arguments of ``flwr``."""
    if request.app is None:
        app, changes = write_app(home, request.config), []
    else:
        app, changes = request.app, ["--run-config", str(write_overrides(home, request.config))]
    return ["run", str(app), "--stream", *changes, "--federation-config", simulation(request.clients, request.share)]


def states_of(request: Request) -> dict[str, str]:
    """Return the variable that tells clients where to keep what is their own; another app has no use for it."""
    return {} if request.app is not None else {VARIABLE: str(RunFolder(request.out).clients.resolve())}


def simulation(clients: int, share: Share) -> str:
    """Return Flower's settings of a simulation."""
    settings = {
        "num-supernodes": clients,
        "client-resources-num-cpus": share.cpus,
        "client-resources-num-gpus": float(share.gpus),
    }
    # In a cluster Ray knows what there is, and refuses to be told.
    if share.at_once and "RAY_ADDRESS" not in os.environ:
        settings["init-args-num-cpus"] = share.at_once * share.cpus
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _outcome(superlink: SuperLink, output: Path) -> Outcome:
    lines = log.lines_of(output)
    run_id = log.run_id(lines)
    if run_id is None:
        return Outcome("failed", "Flower refused the run", tuple(log.traceback(lines)))
    status, details = _final_status(superlink, run_id)
    lines = log.lines_of(output)
    if status == "finished:completed":
        empty = log.failed_round(lines)
        why = "; ".join(filter(None, [empty, log.cause(lines)]))
        return Outcome("failed", why, tuple(log.traceback(lines))) if empty else Outcome("completed")
    if status == "finished:stopped":
        return Outcome("stopped", "the run was stopped")
    if status != "finished:failed":
        return Outcome("failed", f"Flower's SuperLink has ended before the run did ({status}: {details})")
    return Outcome("failed", log.cause(lines) or details, tuple(log.traceback(lines)), memory.in_log(lines))


def _final_status(superlink: SuperLink, run_id: str) -> tuple[str, str]:
    """Return the status of a run whose log has ended, when it is final or ``PATIENCE`` is at its end."""
    deadline = time.monotonic() + PATIENCE
    status, details = superlink.status(run_id)
    while not status.startswith("finished") and superlink.alive and time.monotonic() < deadline:
        time.sleep(PAUSE)
        status, details = superlink.status(run_id)
    return status, details


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn a request to end into an exception, so that everything is cleaned up."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    if current_thread() is not main_thread():  # Python lets no other thread set it
        yield
        return
    before = signal(SIGTERM, leave)
    try:
        yield
    finally:
        signal(SIGTERM, before)
