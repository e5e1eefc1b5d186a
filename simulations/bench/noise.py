"""Privacy noise: megabytes of a float32 model that one core gives noise to in a second.

The reference is torch's normal noise in double precision, which is no protection: its seed can be found.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from heterofl_flwr.core.differential_privacy import Keystream, draw, released
from heterofl_flwr.nn import PAPER
from simulations.bench.measure import Goal, in_turns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="cifar10", choices=PAPER, help="of the paper (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements, of which the median counts (%(default)s)")


def run(options: argparse.Namespace) -> list[Goal]:
    torch.set_num_threads(1)
    state = {name: own.detach() for name, own in PAPER[options.model].build()(1.0).named_parameters()}
    sums = {name: torch.zeros_like(own, dtype=torch.float64) for name, own in state.items()}
    held = {name: torch.ones_like(own) for name, own in sums.items()}
    number = sum(own.numel() for own in state.values())
    calls: dict[str, Callable[[], object]] = {
        "draw": lambda: draw(Keystream(), torch.Size([number])),
        "draw, add and divide": lambda: released(state, sums, held.__getitem__, 1.0),
        "torch.randn": lambda: torch.randn(number, dtype=torch.float64),
    }
    print(f"{options.model} model, {number:,} parameters, one thread; no seed: each release has a key of its own\n")
    times = in_turns({name: partial(processor_seconds, call) for name, call in calls.items()}, options.rounds)
    speeds = {name: 4e-6 * number / statistics.median(seconds) for name, seconds in times.items()}
    for name, speed in speeds.items():
        print(f"{name:<24}{speed:>8.0f} MB/s")
    return [Goal("megabytes of parameters that get noise in a second", speeds["draw, add and divide"], least=100)]


def processor_seconds(call: Callable[[], object]) -> float:
    """Return a call's seconds of the processor, which other programs disturb less than those of the clock."""
    started = time.process_time()
    call()
    return time.process_time() - started
