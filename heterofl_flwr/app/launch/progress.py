"""Show a run while it goes: its rounds where it writes a history, else its log."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from heterofl_flwr.app.launch.log import lines_of
from heterofl_flwr.methods.callbacks import Progress, RoundRecord
from heterofl_flwr.report.console import Console
from heterofl_flwr.report.history import read


class Rounds:
    """Follows the history of a run folder.

    A run that goes on may first drop rounds from it; those are run, and returned, again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _stamp(path)
        self._last = _last_round(read(path))

    def new(self) -> Iterator[RoundRecord]:
        """Yield the rounds that were added since the last call."""
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        records = read(self._path)
        self._last = min(self._last, _last_round(records))
        for record in records:
            if record.server_round > self._last:
                self._last = record.server_round
                yield record


class Lines:
    """Follows a log and copies it."""

    def __init__(self, path: Path, out: TextIO) -> None:
        self._path = path
        self._out = out
        self._shown = 0

    def show(self) -> None:
        """Copy what was added since the last call."""
        lines = lines_of(self._path)
        for line in lines[self._shown :]:
            print(line, file=self._out, flush=True)
        self._shown = len(lines)


class Screen:
    """Prints rounds as they come."""

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._console = Console()

    def show(self, record: RoundRecord) -> None:
        """Print one round."""
        self._console.on_round_end(Progress(record, {}, {}, {}, self._num_rounds))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return (0, 0, 0)
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _last_round(records: list[RoundRecord]) -> int:
    return records[-1].server_round if records else 0
