"""How far a sweep has come."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from simulations.sweeps.speed import ratio


class Progress:
    """Says which job of how many is next, and how long all of them take, which each end tells better.

    Parameters
    ----------
    names : Sequence[str]
        The jobs that are to be run.
    expected : Mapping[str, float]
        How long they take from where they are, as far as that is known.
    """

    def __init__(self, names: Sequence[str], expected: Mapping[str, float]) -> None:
        self._left = list(names)
        self._number = len(names)
        self._expected = expected
        self._start = self._last = time.monotonic()
        self._ended: list[tuple[float, float]] = []

    def begin(self, name: str) -> str:
        """Return a line about the job that begins."""
        number = self._number - len(self._left) + 1
        parts = [f"job {number} of {self._number}: {name}"]
        if number > 1:
            parts.append(f"{duration(self._last - self._start)} so far")
        if all(one in self._expected for one in self._left):
            stretch = ratio(self._ended)
            parts.append(f"about {duration(stretch * sum(self._expected[one] for one in self._left))} left")
        return ", ".join(parts)

    def end(self, name: str, *, good: bool) -> None:
        """Take note that a job has ended; one that failed tells nothing about the others."""
        before, self._last = self._last, time.monotonic()
        if good and name in self._expected:
            self._ended.append((self._expected[name], self._last - before))
        self._left.remove(name)


def duration(seconds: float) -> str:
    """Return a time as ``12 s``, ``1:02:03`` or ``3 days, 1:02:03``."""
    return f"{seconds:.0f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
