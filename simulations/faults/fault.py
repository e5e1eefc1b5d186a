"""One fault: what it is, when it strikes, and the events that the processes of its run note."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

VARIABLE = "HETEROFL_FAULT"
"""The variable that names the cell's folder to the processes of its run."""

MOMENTS = ("before", "during", "after")

Pair = tuple[int, int]
"""A partition and a round."""


class Event(NamedTuple):
    """Something that a process of the run noted, and when."""

    seconds: float
    what: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A cell of the matrix: what happens, in which round and when in it, and to which client if it is one."""

    folder: str  # the cell's own; its run is in `run`
    kind: str
    moment: str
    server_round: int
    num_rounds: int
    clients: int
    deadline: float  # seconds that clients have for an answer
    seed: int
    partition: int = 1
    missing: Sequence[Pair] = ()  # replies that are removed without any fault, for the runs that serve as references

    def write(self) -> None:
        """Make the cell's folder."""
        (self.path / "events").mkdir(parents=True)
        (self.path / "fault.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Return the fault of a cell."""
        found = json.loads((Path(folder) / "fault.json").read_text(encoding="utf-8"))
        return cls(**{**found, "missing": [tuple(pair) for pair in found["missing"]]})

    @classmethod
    def current(cls) -> Self:
        """Return the fault of the run that this process belongs to."""
        return cls.read(os.environ[VARIABLE])

    @property
    def path(self) -> Path:
        return Path(self.folder)

    @property
    def run(self) -> Path:
        return self.path / "run"

    def note(self, what: str, number: int) -> None:
        """Note an event: by an empty file, for which there is room also on a disk that is full."""
        (self.path / "events" / f"{time.time_ns()}_{what}_{number}").touch()

    def events(self) -> list[Event]:
        """Return all events in their order."""
        parts = (path.name.split("_") for path in (self.path / "events").iterdir())
        return sorted(Event(int(when) / 1e9, what, int(number)) for when, what, number in parts)

    def strikes(self, moment: str, server_round: int) -> bool:
        """Note that the fault strikes, and return True, if this is its moment and it has not struck yet."""
        if (moment, server_round) != (self.moment, self.server_round):
            return False
        try:
            (self.path / "struck").touch(exist_ok=False)
        except FileExistsError:
            return False
        self.note("fault", server_round)
        return True
