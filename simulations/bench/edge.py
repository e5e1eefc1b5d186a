"""Start and memory of a client on a small device, beside ``import torch`` alone.

In Flower's default isolation every message starts a process, so what a client imports is paid for with each. Measured
are whole processes: one that imports torch, one that imports our ClientApp as Flower does, and one that also trains
level e of the MNIST model for an epoch on a folder of 28x28 images, as a node with data of its own does. The goals are
of seconds of the processor, which other programs disturb less than those of the clock.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from simulations.bench.measure import print_verdict

MOST_SECONDS = 1.5
MOST_MEMORY = 1.25
CLASSES = 10
# What the system says of a child counts what its parent held when it was started, so it says it of itself.
TELL = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"


@dataclass(frozen=True, slots=True)
class Used:
    """What a process took: seconds of the clock and of the processor, and bytes at the most."""

    seconds: float
    processor: float
    peak: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--level", default="e", help="level of the client (%(default)s)")
    parser.add_argument("--images", type=int, default=100, help="training images of the client (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind, taking turns (%(default)s)")


def run(options: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.images)
        programs = {
            "import torch": "import torch",
            "import the ClientApp": "import heterofl_flwr.app.client_app",
            f"train level {options.level}": (
                f"from simulations.bench.edge_client import main; main({folder!r}, {options.level!r})"
            ),
        }
        found: dict[str, list[Used]] = {name: [] for name in programs}
        for _ in range(options.rounds):
            for name, program in programs.items():
                found[name].append(measure(program))
    return report({name: median(all_) for name, all_ in found.items()})


def measure(program: str) -> Used:
    """Run a Python program in a process of its own, to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", f"{program}\n{TELL}"], env=environment, stdout=subprocess.PIPE
    ) as process:
        told = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"a process that was to be measured failed with exit status {process.returncode}: {program}")
    return Used(time.monotonic() - started, usage.ru_utime + usage.ru_stime, int(told.split()[-1]) * 1024)


def median(used: Sequence[Used]) -> Used:
    """Return the median of each number."""
    return Used(
        statistics.median(one.seconds for one in used),
        statistics.median(one.processor for one in used),
        int(statistics.median(one.peak for one in used)),
    )


def report(found: dict[str, Used]) -> bool:
    """Print a line for each program, and the verdict on the second, which is the start of a client."""
    print(f"{'process':<24}{'clock':>9}{'processor':>12}{'peak memory':>14}{'processor':>14}{'memory':>9}")
    torch, client = list(found.values())[:2]
    for name, used in found.items():
        ratios = f"{used.processor / torch.processor:>12.2f} x{used.peak / torch.peak:>7.2f} x"
        print(f"{name:<24}{used.seconds:>7.2f} s{used.processor:>10.2f} s{used.peak / 2**20:>10.0f} MiB{ratios}")
    seconds, memory = client.processor / torch.processor, client.peak / torch.peak
    return print_verdict(
        seconds <= MOST_SECONDS and memory <= MOST_MEMORY,
        f": a client starts in {seconds:.2f} times what torch takes (goal {MOST_SECONDS:g}) and needs {memory:.2f} "
        f"times its memory (goal {MOST_MEMORY:g})",
    )


def write_images(folder: Path, number: int) -> None:
    """Write grey images of noise, all classes alike often, to train and to test."""
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for row in range(number):
            path = folder / part / str(row % CLASSES) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
