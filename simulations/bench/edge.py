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
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from heterofl_flwr.errors import HeteroFLError
from simulations.bench.measure import Goal, in_turns

CLASSES = 10
# What the system says of a child counts what its parent held when it was started, so it says it of itself.
PRINT_PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"

Used = tuple[float, float, int]
"""What a process used: seconds of the clock and of the processor, and bytes at the most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--level", default="e", help="level of the client (%(default)s)")
    parser.add_argument("--images", type=int, default=100, help="training images of the client (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind, taking turns (%(default)s)")


def run(options: argparse.Namespace) -> list[Goal]:
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.images)
        train = f"from simulations.bench.edge_client import main; main({folder!r}, {options.level!r})"
        programs = {
            "import torch": "import torch",
            "import the ClientApp": "import heterofl_flwr.app.client_app",
            f"train level {options.level}": train,
        }
        found = in_turns({name: partial(measure, program) for name, program in programs.items()}, options.rounds)
    return report({name: tuple(map(statistics.median, zip(*used, strict=True))) for name, used in found.items()})


def measure(program: str) -> Used:
    """Run a Python program in a process of its own, to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", f"{program}\n{PRINT_PEAK}"]
    started = time.monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        printed = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise HeteroFLError(
            f"a process that was to be measured failed with exit status {process.returncode}: {program}"
        )
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, int(printed.split()[-1]) * 1024


def report(found: dict[str, tuple[float, ...]]) -> list[Goal]:
    """Print a line for each program; the goals are of the second, which is the start of a client."""
    print(f"{'process':<24}{'clock':>9}{'processor':>12}{'peak memory':>14}{'processor':>14}{'memory':>9}")
    reference, client = list(found.values())[:2]
    for name, (clock, processor, peak) in found.items():
        ratios = f"{processor / reference[1]:>12.2f} x{peak / reference[2]:>7.2f} x"
        print(f"{name:<24}{clock:>7.2f} s{processor:>10.2f} s{peak / 2**20:>10.0f} MiB{ratios}")
    return [
        Goal("start of a client, in times that of torch", client[1] / reference[1], most=1.5),
        Goal("its memory, in times torch's", client[2] / reference[2], most=1.25),
    ]


def write_images(folder: Path, number: int) -> None:
    """Write grey images of noise, all classes alike often, to train and to test."""
    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for row in range(number):
            path = folder / part / str(row % CLASSES) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
