"""What a measurement was made on, and how."""

import ctypes
import gc
import math
import os
import platform
import statistics
import subprocess
import timeit
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from heterofl_flwr.report.drawing import add_legend, new_axes, series


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


def draw(
    curves: Mapping[str, Sequence[float]], names: Sequence[str], xlabel: str, ylabel: str, *, log: bool = False
) -> Figure:
    """Return a chart with one curve for each name in ``curves``, its points side by side."""
    figure, axes = new_axes(xlabel, ylabel)
    for number, (name, values) in enumerate(curves.items()):
        colour, dash = series(number)
        axes.plot(range(len(names)), values, dash, color=colour, label=name, marker="o", markersize=4)
    axes.set_xticks(range(len(names)), names)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(bottom=0)
    add_legend(axes)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a chart as SVG or PNG, by the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date and with fixed ids, equal charts are equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure.savefig(path, dpi=200, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(f"chart: {path}")
