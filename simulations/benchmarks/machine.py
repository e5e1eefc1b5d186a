"""What a measurement was made on, and how."""

import os
import platform
import statistics
import subprocess
import timeit
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch


def describe_machine() -> str:
    """Return one line: processor, cores, versions and commit."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "processor")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = f"Python {platform.python_version()}, torch {version('torch')}, flwr {version('flwr')}"
    return f"{model}, {os.cpu_count()} cores, {device}; {versions}; commit {_commit()}"


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


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return answer.stdout.strip() or "unknown"
