"""What a measurement was made on, and how."""

import ctypes
import gc
import math
import platform
import statistics
import timeit
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch

from heterofl_flwr.runs.origin import commit, machine


def describe_machine() -> str:
    """Return one line: processor, cores, versions and commit."""
    versions = f"Python {platform.python_version()}, torch {version('torch')}, flwr {version('flwr')}"
    return f"{machine()}; {versions}; commit {commit()[:7]}"


def side_by_side(
    ours: Callable[[], object], reference: Callable[[], object], rounds: int
) -> tuple[float, float, float]:
    """Return median seconds of both and the median of their ratio, measured alternately so that both see the noise."""
    pairs = [(_seconds(ours), _seconds(reference)) for _ in range(rounds + 1)][1:]
    mine, theirs = zip(*pairs, strict=True)
    return statistics.median(mine), statistics.median(theirs), statistics.median(b / a for a, b in pairs)


def _seconds(call: Callable[[], object]) -> float:
    """Return the seconds of one call, the mean of as many as take a fifth of a second."""
    number, total = timeit.Timer(call).autorange()
    return total / number


_STATUS = Path("/proc/self/status")


def peak_of(call: Callable[[], object]) -> float:
    """Return the bytes that a call adds to this process at its peak, its result included; NaN where Linux is not."""
    if not _STATUS.exists():
        call()
        return math.nan
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back, else the call would use it unseen
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is in use now
    before = _bytes("VmRSS")
    call()
    return _bytes("VmHWM") - before


def _bytes(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def own_process(threads: int) -> ProcessPoolExecutor:
    """Return a process that lasts as long as this is open, with its own number of torch threads."""
    # Spawned, because a fork of a process that has used torch may hang.
    return ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,))


def print_verdict(passed: bool, text: str) -> bool:
    """Print the last line of a benchmark; return whether every goal was met."""
    print(f"\n{'PASS' if passed else 'FAIL'}{text}")
    return passed
