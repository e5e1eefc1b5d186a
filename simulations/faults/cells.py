"""One cell of the matrix: a run with a fault, and what became of it."""

import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import Flat
from simulations.deployment import Deployment, kill, kill_with_all
from simulations.faults.fault import VARIABLE, Event, Fault, Pair
from simulations.faults.kinds import KINDS, Ends, Kind
from simulations.faults.server import settings_of

GRACE = 5.0
"""Seconds beyond a round's deadline in which a run must have recovered."""

MOST_LOST = 1
State = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a run.

    Attributes
    ----------
    kind, moment
        The fault.
    model
        How its last model compares with that of a run without the fault: ``equal``, to the bit, ``not promised``, where
        there is one, ``other``, or ``lost``.
    rounds_lost
        Rounds of which the replies were in, and that were trained again.
    seconds
        From the fault to the first round that was saved after it, or to the run's end where no round is left.
    limit
        What they may be.
    faults
        What is wrong.
    """

    kind: str
    moment: str
    model: str
    rounds_lost: int
    seconds: float
    limit: float
    faults: Sequence[str]

    @property
    def good(self) -> bool:
        """Whether all was as it is promised."""
        return not self.faults


class Cells:
    """Makes cells in a folder, all on one seed and with one deadline."""

    def __init__(self, folder: Path, *, deadline: float, seed: int, num_rounds: int = 4, clients: int = 4) -> None:
        self._none = Fault(
            folder=str(folder),
            kind="none",
            moment="before",
            server_round=num_rounds - 1,
            num_rounds=num_rounds,
            clients=clients,
            deadline=deadline,
            seed=seed,
        )
        self._folder = folder
        self._numbers = itertools.count()
        self._known: dict[tuple[Pair, ...], State] = {}

    def fault(self, name: str, moment: str) -> Fault:
        """Return a fault of a kind, in the last round but one, or in the last."""
        number = self._none.num_rounds - (not KINDS[name].last)
        return replace(
            self._none, folder=str(self._folder / f"{name}-{moment}"), kind=name, moment=moment, server_round=number
        )

    def expected(self, fault: Fault) -> State | None:
        """Return the model that a run must end with; None where nothing is promised."""
        missing = KINDS[fault.kind].missing
        return None if missing is None else self.without(missing(fault))

    def without(self, missing: Sequence[Pair]) -> State:
        """Return the model of a run without any fault, but also without some replies."""
        key = tuple(sorted(missing))
        if key not in self._known:
            self._known[key] = self._train_without(key)
        return self._known[key]

    def run(self, name: str, moment: str) -> Outcome:
        """Let a fault strike a run, start it anew where that is needed, and judge it."""
        fault, kind = self.fault(name, moment), KINDS[name]
        fault.write()
        faults = []
        code = start_forked(fault)
        if kind.restarts:
            faults += [] if code else ["the server went on as if nothing had happened"]
            faults += down(fault, kind)
            code = start_anew(fault)
        faults += [f"the server ended with exit code {code}"] if code else []
        return judge(fault, self.expected(fault), faults)

    def _train_without(self, missing: tuple[Pair, ...]) -> State:
        fault = replace(self._none, folder=str(self._folder / f"without-{next(self._numbers)}"), missing=missing)
        fault.write()
        code = start_forked(fault)
        state = final_model(fault)
        if code or state is None:
            raise HeteroFLError(f"a run without any fault ended with exit code {code}; see {fault.path / 'log.txt'}")
        return state


def judge(fault: Fault, expected: State | None, faults: Sequence[str]) -> Outcome:
    """Return what became of a run that is over."""
    kind, events = KINDS[fault.kind], fault.events()
    model = _compare(final_model(fault), expected)
    lost, seconds = rounds_lost(events), recovery(events)
    limit = fault.deadline + GRACE
    found = [
        *faults,
        *_record_faults(fault, kind),
        *([f"the model is {model}"] if model in ("other", "lost") else []),
        *([f"{lost} rounds were lost"] if lost > MOST_LOST else []),
        *([f"recovery took {seconds:.1f} s"] if seconds > limit else []),
    ]
    return Outcome(
        kind=fault.kind, moment=fault.moment, model=model, rounds_lost=lost, seconds=seconds, limit=limit, faults=found
    )


def final_model(fault: Fault) -> State | None:
    """Return the models of all levels that a run has left; None if any of them is not whole."""
    try:
        return {
            f"{level}/{name}": value
            for level in ("a", "e")
            for name, value in load_file(fault.run / "models" / f"{level}.safetensors").items()
        }
    except (OSError, SafetensorError):
        return None


def rounds_lost(events: Sequence[Event]) -> int:
    """Return how many rounds were trained again although their replies had come."""
    times = Counter(event.number for event in events if event.what == "trained")
    return sum(number - 1 for number in times.values())


def recovery(events: Sequence[Event]) -> float:
    """Return the seconds from the fault to the next round that was saved, or to the run's end; without end if none."""
    struck = next((event.seconds for event in events if event.what == "fault"), float("inf"))
    done = (event.seconds for event in events if event.what in ("saved", "ended") and event.seconds > struck)
    return next(done, float("inf")) - struck


def down(fault: Fault, kind: Kind) -> Iterator[str]:
    """Damage files while the server is down, and look whether the model is still there."""
    if kind.damage is not None:
        kind.damage(fault.run)
    try:
        RunFolder(fault.run).load_checkpoint()
    except HeteroFLError as error:
        yield f"no checkpoint can be read: {error}"


def _compare(found: State | None, expected: State | None) -> str:
    if found is None:
        return "lost"
    if expected is None:
        return "not promised"
    same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    return "equal" if same else "other"


def _record_faults(fault: Fault, kind: Kind) -> Iterator[str]:
    """Yield what is wrong with the run's history and logs."""
    try:
        history = RunFolder(fault.run).history()
    except HeteroFLError as error:
        yield f"the history cannot be read: {error}"
        return
    numbers = [record.server_round for record in history]
    if numbers != list(range(1, fault.num_rounds + 1)):
        yield f"the history has rounds {numbers}"
        return
    record = history[fault.server_round - 1]
    if trouble := kind.check(record, fault) or _reasons(record, fault, kind):
        yield trouble
    path = fault.path / "log.txt"  # under a SuperLink, its own has all
    if kind.says and not re.search(kind.says, path.read_text(encoding="utf-8", errors="replace")):
        yield f"the log does not say {kind.says!r}"


def _reasons(record: RoundRecord, fault: Fault, kind: Kind) -> str:
    """Return what is wrong with the failures of the round, where a reason is expected."""
    if not kind.reason:
        return ""
    good = list(record.failures) == [fault.partition] and re.search(kind.reason, record.failures[fault.partition])
    return "" if good else f"the record of the round says {dict(record.failures)}"


SERVER_LONGEST = 300.0  # seconds after which a server counts as hanging
ROOT = Path(__file__).parents[2]
PRELOADED = ["simulations.faults.server", "sklearn.datasets", "torch._dynamo"]


def start_forked(fault: Fault) -> int:
    """Run a cell's server in a fork; return its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(fault.folder, theirs), daemon=True)
    process.start()
    theirs.close()
    reader = threading.Thread(target=_copy, args=(ours, fault.path / "log.txt"))
    reader.start()
    process.join(SERVER_LONGEST)
    if process.is_alive():
        process.kill()
        process.join()
    reader.join()
    return process.exitcode or 0


def start_anew(fault: Fault) -> int:
    """Go on with a cell's run in a new interpreter; return its exit code."""
    with (fault.path / "log.txt").open("ab") as log:
        words = [sys.executable, "-m", "simulations.faults.server", fault.folder, "--resume"]
        environment = {**os.environ, VARIABLE: fault.folder}
        try:
            return subprocess.run(
                words, stdout=log, stderr=log, check=False, cwd=ROOT, env=environment, timeout=SERVER_LONGEST
            ).returncode
        except subprocess.TimeoutExpired:
            return -9


def _serve(folder: str, out: Connection) -> None:
    from simulations.faults.server import serve

    # A pipe, not a file: a disk that is full would swallow what is said of it.
    for descriptor in (1, 2):
        os.dup2(out.fileno(), descriptor)
    out.close()
    serve(folder, False)


def _copy(source: Connection, path: Path) -> None:
    with source, path.open("ab") as log:
        while piece := _read(source):
            log.write(piece)


def _read(source: Connection) -> bytes:
    return os.read(source.fileno(), 65536)


CLIENT = "simulations.faults.client:app"
SERVER = "simulations.faults.server_app:app"
NODES = ("first", "second")
LONGEST = 600.0
PAUSE = 1.0


class DeployedCells(Cells):
    """Makes cells of few rounds; a context manager that ends all processes."""

    def __init__(self, folder: Path, *, deadline: float, seed: int) -> None:
        super().__init__(folder, deadline=deadline, seed=seed, num_rounds=3, clients=len(NODES))
        self._now = folder / "now"
        self._stack = ExitStack()
        self._deployment = Deployment(folder, {"OMP_NUM_THREADS": "1", VARIABLE: str(self._now)})

    def __enter__(self) -> Self:
        """Start the SuperLink and the nodes."""
        self._stack.enter_context(self._deployment)
        self._superlink = self._deployment.start_superlink()
        self._deployment.register(*NODES)
        self._nodes = [self._start_node(number) for number in range(len(NODES))]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all processes."""
        self._stack.close()

    def expected(self, fault: Fault) -> State | None:
        """Return the model that a run must end with: without the replies that its own history lacks.

        How long a node stays away depends on the machine.
        """
        if KINDS[fault.kind].missing is not None:
            return super().expected(fault)
        return self.without(
            [
                (partition, record.server_round)
                for record in RunFolder(fault.run).history()
                for partition in range(len(NODES))
                if partition not in record.rates or partition in record.failures
            ]
        )

    def run(self, name: str, moment: str) -> Outcome:
        """Let a fault strike a run, start anew what it ended, and judge it."""
        fault, kind = self.fault(name, moment), KINDS[name]
        fault.write()
        self._now.unlink(missing_ok=True)
        self._now.symlink_to(fault.path)
        run_id = self._deployment.submit(self._config(fault, resume=False), CLIENT, SERVER)
        self._deployment.wait_for(lambda: self._event(fault, "fault"), f"the moment of {name}", LONGEST)
        self._end(kind.ends, fault)
        (fault.path / "done").touch()
        faults: list[str] = []
        if kind.ends == "superlink":
            self._superlink = self._deployment.start_superlink()
        if kind.restarts:
            faults += down(fault, kind)
            run_id = self._deployment.submit(self._config(fault, resume=True), CLIENT, SERVER)
        self._wait(fault)
        status, details = self._deployment.wait_for_end(run_id, LONGEST)
        faults += [] if status == "finished:completed" else [f"the run is {status}: {details}"]
        return judge(fault, self.expected(fault), faults)

    def _wait(self, fault: Fault) -> None:
        """Wait for the end of a run; as a supervisor does, start nodes again that end.

        A SuperLink refuses a node whose key it believes to be connected, for a minute after that one was killed.
        """
        deadline = time.monotonic() + LONGEST
        while not self._event(fault, "ended") and time.monotonic() < deadline:
            time.sleep(PAUSE)
            for number, node in enumerate(self._nodes):
                if node.poll() is not None:
                    self._nodes[number] = self._start_node(number)

    def _config(self, fault: Fault, *, resume: bool) -> Mapping[str, Flat]:
        return {**settings_of(fault, resume=resume), "sample.wait": LONGEST}

    def _start_node(self, number: int) -> subprocess.Popen[bytes]:
        level = "ae"[number]
        return self._deployment.start_node(
            NODES[number], f'level="{level}" partition-id={number} num-partitions={len(NODES)}'
        )

    def _event(self, fault: Fault, what: str) -> int | None:
        """Return the number of the last event of a name."""
        return next((event.number for event in reversed(fault.events()) if event.what == what), None)

    def _end(self, what: Ends, fault: Fault) -> None:
        """Kill a process."""
        if what == "superlink":
            kill_with_all(self._superlink)
        elif what == "supernode":
            kill(self._nodes[fault.partition])
        elif pid := self._event(fault, what):
            os.kill(pid, signal.SIGKILL)
