"""Functions for all benchmarks: alternating measurements, memory of a call, rows of a table, and goals."""

import gc
import math
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.data import Dataset, Split
from heterofl_flwr.runs.origin import commit, machine, short_commit
from heterofl_flwr.training.device import give_back_gaps

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Goal:
    """A measured value and the bounds of its goal; NaN does not meet the goal."""

    name: str
    value: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def met(self) -> bool:
        return self.least <= self.value <= self.most

    def __str__(self) -> str:
        """Return the value and its goal as text."""
        goal = f"at least {self.least:g}" if math.isinf(self.most) else f"at most {self.most:g}"
        return f"{self.name} {self.value:.3g} (goal: {goal})"


def print_verdict(goals: Sequence[Goal]) -> bool:
    """Print the final line of a benchmark; return True if all goals were met."""
    passed = all(goal.met for goal in goals)
    print(f"\n{'PASS' if passed else 'FAIL'}: {'; '.join(map(str, goals)) or 'there is nothing to compare with'}")
    return passed


def in_turns(calls: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Run calls alternately, so that noise affects all of them; return the results without the first turn."""
    turns = [{name: call() for name, call in calls.items()} for _ in range(rounds + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in calls}


def medians(rows: Iterable[Iterable[float]]) -> Iterator[float]:
    """Return the median of each column."""
    return map(statistics.median, zip(*rows, strict=True))


def print_row(name: str | int, cells: Iterable[float | str], width: int = 16) -> None:
    """Print a row of a table, with columns of this width; numbers have four significant digits."""
    texts = (cell if isinstance(cell, str) else f"{cell:.4g}" for cell in cells)
    print(f"{name:<22}" + "".join(f"{text:>{width}}" for text in texts), flush=True)


def describe_machine() -> str:
    """Return a line with processor, cores, versions and commit."""
    versions = f"Python {platform.python_version()}, torch {version('torch')}, flwr {version('flwr')}"
    return f"{machine()}; {versions}; commit {short_commit(commit())}"


def peak_of(call: Callable[[], object]) -> int:
    """Return the peak memory in bytes that a call adds to this process, including its result; on Linux."""
    gc.collect()
    give_back_gaps()  # return freed memory to the system; the call could reuse it without increasing the peak
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the memory in use now
    before = read_bytes("VmRSS")
    call()
    return read_bytes("VmHWM") - before


def read_bytes(key: str) -> int:
    """Return a size from the status of this process on Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def pixels_of(data: Dataset, split: Split) -> Tensor:
    """Return the images of a split as bytes, of shape (number, channels, height, width)."""
    if data.normal is None:
        raise ConfigError(f"{data.name} is not normalised; expected a mean and a deviation")
    mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in (data.normal.mean, data.normal.deviation))
    return ((split.inputs * deviation + mean) * 255).round().clamp(0, 255).byte()
