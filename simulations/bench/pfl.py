"""Rounds of the benchmark of pfl-research, in pfl-research and in this package.

1,000 clients have 50 CIFAR-10 images each. In a round, 50 clients train the same CNN for one epoch. The sides run
alternately: pfl-research's own script with its own configuration, and ``heterofl run`` with models of one size. Both
print the time of each round; rounds with an evaluation do not count. pfl-research uses the GPU if there is one.

``--pfl`` names a checkout of pfl-research; ``--python`` names a Python with the packages in its ``pyproject.toml``.
"""

import argparse
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import width
from heterofl_flwr.data import load_dataset
from heterofl_flwr.runs.folder import RunFolder
from simulations.bench.measure import Goal, in_turns, pixels_of
from simulations.program import cores

SCRIPT, CONFIG = "benchmarks/image_classification/pytorch/train.py", "image_classification/configs/baseline.yaml"
ROUNDS = 4
"""Number of rounds of a program; pfl-research evaluates in the first one."""

RUN = (
    f"--clients 1000 --rounds {ROUNDS} --grid ray --trust model.name={__name__}:build data.name=cifar10 data.split=iid "
    "mix=a1 train.epochs=1 train.lr=0.1 train.momentum=0 train.weight-decay=0 train.clip=0 train.milestones= "
    "evaluate.every=0 sample.fraction=0.05"
)


def build(rate: float) -> nn.Module:
    """Return the benchmark's CNN: two convolutions, one hidden linear layer, dropout."""
    first, second, hidden = (width(number, rate) for number in (32, 64, 128))
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, first, 3), nn.ReLU(), nn.Conv2d(first, second, 3), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()),
        nn.Sequential(nn.Linear(14 * 14 * second, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 10)),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pfl", type=Path, required=True, metavar="PATH", help="a checkout of pfl-research")
    parser.add_argument("--python", default=sys.executable, metavar="FILE", help="Python with pfl-research's packages")
    parser.add_argument("--root", default="", metavar="DIR", help="CIFAR-10 as on the hub; else HETEROFL_DATA")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of both sides, taking turns")


def run(options: argparse.Namespace) -> list[Goal]:
    if not (options.pfl / SCRIPT).is_file():
        raise ConfigError(f"--pfl is {options.pfl}: there is no {SCRIPT}; expected a checkout of pfl-research")
    with tempfile.TemporaryDirectory() as folder:
        write_images(options.root, Path(folder))
        sides = {"ours": partial(time_ours, options.root), "pfl-research": partial(time_pfl, options, folder)}
        seconds = {name: statistics.median(times) for name, times in in_turns(sides, options.rounds).items()}
    for name, median in seconds.items():
        print(f"{name:<14}{median:>9.4g} s a round, {50 / median:.4g} clients a second, {1500 * median / 60:.3g} min")
    return [Goal("a round of pfl-research, in rounds of ours", seconds["pfl-research"] / seconds["ours"], least=1)]


def write_images(root: str, folder: Path) -> None:
    """Write CIFAR-10 as two files of bytes, as pfl-research's download does."""
    data = load_dataset("cifar10", root or None)
    for part, split in (("train", data.train), ("test", data.test)):
        images = pixels_of(data, split).permute(0, 2, 3, 1).contiguous()
        pairs = (images.numpy(), split.targets.reshape(-1, 1).numpy())
        (folder / f"cifar10_{part}.p").write_bytes(pickle.dumps(pairs))


def time_ours(root: str) -> float:
    """Return the median seconds of a round of ``heterofl run``, with as many processes as there are cores or GPUs."""
    number = torch.cuda.device_count() or cores()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*RUN.split(), "--parallel", str(number), "--out", f"{folder}/run", f"data.root={root}"]
        execute([sys.executable, "-m", "heterofl_flwr", "run", *arguments], {})
        records = RunFolder(f"{folder}/run").history()
    return statistics.median(record.seconds for record in records[1:])


def time_pfl(options: argparse.Namespace, data: str) -> float:
    """Return the median seconds of a round of pfl-research's script."""
    checkout = options.pfl.resolve()
    path = os.pathsep.join([str(checkout), str(checkout / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    arguments = ["--args_config", CONFIG, "--data_path", data, "--central_num_iterations", str(ROUNDS)]
    script = str(checkout / SCRIPT)
    text = execute([options.python, script, *arguments], {"PYTHONPATH": path}, checkout / "benchmarks")
    rounds = re.findall(r"Duration of iteration \(s\) *: *([\d.]+)", text)
    return statistics.median(map(float, rounds[1:]))


def execute(command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> str:
    """Run a program; return what it prints."""
    done = subprocess.run(command, env=os.environ | environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{' '.join(command[:3])} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout + done.stderr
