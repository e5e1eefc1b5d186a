"""Privacy noise: megabytes of a float32 model that one core gives noise to in a second.

The reference is torch's normal noise in double precision, which is no protection: its seed can be found.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from heterofl_flwr.core.noise import Keystream, draw, released
from heterofl_flwr.nn import PAPER
from simulations.bench.measure import print_verdict

LEAST_SPEED = 100.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="cifar10", choices=PAPER, help="of the paper (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements, of which the median counts (%(default)s)")


def run(options: argparse.Namespace) -> bool:
    torch.set_num_threads(1)
    state = {name: own.detach() for name, own in PAPER[options.model].build()(1.0).named_parameters()}
    sums = {name: torch.zeros_like(own, dtype=torch.float64) for name, own in state.items()}
    held = {name: torch.ones_like(own) for name, own in sums.items()}
    number = sum(own.numel() for own in state.values())
    ways = {
        "draw": lambda: draw(Keystream(), torch.Size([number])),
        "draw, add and divide": lambda: released(state, sums, held.__getitem__, 1.0),
        "torch.randn": lambda: torch.randn(number, dtype=torch.float64),
    }
    print(f"{options.model} model, {number:,} parameters, one thread; no seed: each release has a key of its own\n")
    speeds = {
        way: statistics.median(speed(call, 4 * number) for _ in range(options.rounds)) for way, call in ways.items()
    }
    for way, found in speeds.items():
        print(f"{way:<24}{found:>8.0f} MB/s")
    return verdict(speeds["draw, add and divide"])


def speed(call: Callable[[], object], num_bytes: int) -> float:
    """Return megabytes by seconds of the processor, which other programs disturb less than those of the clock."""
    started = time.process_time()
    call()
    return num_bytes / (time.process_time() - started) / 1e6


def verdict(found: float) -> bool:
    return print_verdict(
        found >= LEAST_SPEED, f": noise for {found:.0f} MB of parameters a second (goal {LEAST_SPEED:g})"
    )
