"""One cell of the matrix: a run with a fault, and what became of it."""

import itertools
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.report import RunFolder
from simulations.faults.fault import Event, Fault, Pair
from simulations.faults.kinds import KINDS, Kind, server_of

GRACE = 5.0
"""Seconds beyond a round's deadline in which a run must have recovered."""

MOST_LOST = 1
SERVER_LONGEST = 300.0  # seconds after which a server counts as hanging
ROOT = Path(__file__).parents[2]
# Another process writes what the server prints: where the fault is a full disk, the server has no room for it.
LOGGED = ("bash", "-c", 'exec > >(exec cat >>"$0") 2>&1; exec "$@"')
State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run with a fault."""

    fault: Fault
    model: str  # beside that of a run without the fault: equal to the bit, not promised, other, or lost
    rounds_lost: int  # rounds of which all replies were received, and that were trained again
    seconds: float  # from the fault to the first round saved after it, or to the run's end where no round is left
    broken: Sequence[str]  # what is not as it is promised

    @property
    def limit(self) -> float:
        """The most seconds allowed."""
        return self.fault.deadline + GRACE

    @property
    def faults(self) -> list[str]:
        """What is wrong."""
        wrong = {
            f"the model is {self.model}": self.model in ("other", "lost"),
            f"{self.rounds_lost} rounds were lost": self.rounds_lost > MOST_LOST,
            f"recovery took {self.seconds:.1f} s": self.seconds > self.limit,
        }
        return [*self.broken, *(fault for fault, holds in wrong.items() if holds)]


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
        folder, number = str(self._folder / f"{name}-{moment}"), self._none.num_rounds - (not KINDS[name].last)
        return replace(self._none, folder=folder, kind=name, moment=moment, server_round=number)

    def expected(self, fault: Fault) -> State | None:
        """Return the model that a run must end with; None where nothing is promised."""
        missing = KINDS[fault.kind].missing
        return None if missing is None else self.without(missing(fault))

    def without(self, missing: Sequence[Pair]) -> State:
        """Return the model of a run without any fault, but also without some replies."""
        key = tuple(sorted(missing))
        if key not in self._known:
            folder = str(self._folder / f"without-{next(self._numbers)}")
            fault = replace(self._none, folder=folder, missing=key)
            fault.write()
            code, state = start(fault), final_model(fault)
            if code or state is None:
                raise HeteroFLError(f"a run without any fault ended with exit code {code}; see {fault.path}/log.txt")
            self._known[key] = state
        return self._known[key]

    def run(self, name: str, moment: str) -> Outcome:
        """Let a fault strike a run, start it again where that is needed, and assess it."""
        fault, kind = self.fault(name, moment), KINDS[name]
        fault.write()
        broken = []
        code = start(fault)
        if kind.restarts:
            broken += [] if code else ["the server went on as if nothing had happened"]
            broken += down(fault, kind)
            code = start(fault, resume=True)
        broken += [f"the server ended with exit code {code}"] if code else []
        return assess(fault, self.expected(fault), broken)


def assess(fault: Fault, expected: State | None, broken: Sequence[str]) -> Outcome:
    """Return what became of a run that is over, of which some things are known to be wrong."""
    events = fault.events()
    model = _compare(final_model(fault), expected)
    return Outcome(fault, model, rounds_lost(events), recovery(events), [*broken, *_record_faults(fault)])


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
    return times.total() - len(times)


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


def _record_faults(fault: Fault) -> Iterator[str]:
    """Yield what is wrong with the run's history and logs."""
    kind = KINDS[fault.kind]
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
    if trouble := kind.check(record, fault):
        yield trouble
    told = list(record.failures) == [fault.partition] and re.search(kind.reason, record.failures[fault.partition])
    if kind.reason and not told:
        yield f"the record of the round says {dict(record.failures)}"
    log = fault.path / "log.txt"  # under a SuperLink, its own has all
    if kind.says and not re.search(kind.says, log.read_text(encoding="utf-8", errors="replace")):
        yield f"the log does not say {kind.says!r}"


def start(fault: Fault, *, resume: bool = False) -> int:
    """Run a cell's server in a new interpreter, or resume its run; return its exit code."""
    log = str(fault.path / "log.txt")
    process = subprocess.Popen([*LOGGED, log, *server_of(fault, resume=resume)], cwd=ROOT)
    try:
        return process.wait(SERVER_LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
