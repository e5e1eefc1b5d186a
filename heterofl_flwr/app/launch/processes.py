"""Find and end all processes of a run, whoever started them, by the mark in their environment.

Flower and Ray start processes that start processes, in sessions of their own. All inherit the environment. Some write
over theirs later, as Ray's workers do to show a title; they are children of some that do not.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "HETEROFL_LAUNCH"
"""The environment variable that holds the mark of a run."""

PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """A process; numbers are used again, so when it began belongs to it."""

    number: int
    began: int


def marked(mark: str) -> set[Process]:
    """Return all living processes with a mark, and their descendants."""
    parents = dict(_parents())
    found = {process for process in parents if _has_mark(process, mark)}
    numbers = {process.number for process in found}
    while more := {process for process in parents.keys() - found if parents[process] in numbers}:
        found |= more
        numbers |= {process.number for process in more}
    return found


def end(mark: str, patience: float = 3.0) -> None:
    """End all processes with a mark: ask them to, and after ``patience`` seconds do it."""
    known: set[Process] = set()
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + patience
        told: set[Process] = set()
        while time.monotonic() < deadline:
            # Children of processes that have just ended are no longer found, so those found once stay known.
            known = {process for process in known | marked(mark) if _lives(process)} - {_self()}
            if not known:
                return
            for process in known - told:
                _send(process, number)
            told |= known
            time.sleep(PAUSE)


def _send(process: Process, number: signal.Signals) -> None:
    with suppress(OSError):  # it has ended by itself
        os.kill(process.number, number)


def _parents() -> Iterator[tuple[Process, int]]:
    """Yield each process and the number of its parent. Where there is no /proc, there are none."""
    with suppress(FileNotFoundError):
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and (stat := _stat(int(folder.name))):
                yield stat


def _stat(number: int) -> tuple[Process, int] | None:
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, parent, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else (Process(number, int(fields[17])), int(parent))


def _lives(process: Process) -> bool:
    stat = _stat(process.number)
    return stat is not None and stat[0] == process


def _self() -> Process | None:
    stat = _stat(os.getpid())
    return stat[0] if stat else None


def _has_mark(process: Process, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{process.number}/environ").read_bytes()
    except OSError:  # ended, or another user's
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")
