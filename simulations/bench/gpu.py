"""Time of steps of the paper's jobs on this machine's device: for each engine, and the least that the device allows.

Engines take turns, with ten clients that train side by side. An engine that trains clients by ``plain`` logs why. What
an engine does once in a round, such as the verification of a joint model, counts in each measurement, so let
``--steps`` be the steps of a round. The time of a job is that of its steps. The least time is the longer of two: that
of the multiplications, at the rate of a large matrix product, and that of the memory traffic, at the rate of a large
copy. Only the traffic of parameters, their gradients, their momentum and layer outputs counts.
"""

import argparse
import logging
import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import get_args

import torch
from torch import Tensor, nn

from heterofl_flwr.core import LEVELS
from heterofl_flwr.data import Reading, Split
from heterofl_flwr.grids.device_costs import PASSES
from heterofl_flwr.nn import PAPER, build_model, profile
from heterofl_flwr.nn.models import Build
from heterofl_flwr.training import ENGINES, TrainingJob, TrainOptions, resolve_device, train_together
from heterofl_flwr.training.device import Precision, arithmetic
from heterofl_flwr.training.engines import structure
from simulations.bench.measure import Goal, in_turns, print_row

TOGETHER = 10
"""Number of clients that train together."""

TRAFFIC = {"parameter": 8, "output": 4}
"""Number of reads and writes of an entry in a step: of a parameter by SGD and both passes, of an output by passes."""


@dataclass(frozen=True, slots=True)
class Work:
    """A job: its model, the levels of its clients, and the number of steps of ten clients that train together."""

    name: str
    data: str
    levels: str
    steps: int
    batch: int = 10
    hidden: tuple[int, ...] = ()  # widths of a CNN; without them, the paper's model of the data

    @property
    def build(self) -> Build:
        """Function of a rate that returns the model."""
        return build_model("cnn", channels=3, hidden=self.hidden) if self.hidden else PAPER[self.data].build()

    def split(self, seed: int, steps: int) -> Split:
        """Return random examples for a number of steps."""
        setup, draw = PAPER[self.data], torch.Generator().manual_seed(seed)
        if setup.dtype == torch.int64:
            # Few long rows, as of WikiText2: the masked words of a row are drawn together, not anew for each step.
            words = torch.randint(33_278, (self.batch, steps * setup.shape[0]), generator=draw)
            return Split(words, words, reading=Reading(hides_as=33_278, length=setup.shape[0]))
        inputs = torch.randn(self.batch * steps, *setup.shape, generator=draw)
        return Split(inputs, torch.randint(10, (len(inputs),), generator=draw))


JOBS = (
    Work("CIFAR-10 a", "cifar10", "a", 100_000),
    Work("CIFAR-10 a-e", "cifar10", "ae", 100_000),
    Work("CIFAR-10 a-b-c-d-e", "cifar10", "abcde", 100_000),
    Work("MNIST a", "mnist", "a", 60_000),
    Work("WikiText-2 a", "wikitext2", "a", 65_000, batch=1),
    Work("race of 1,000 clients", "cifar10", "a", 37_500, hidden=(32, 32, 64, 64)),
)
"""Jobs of the paper with ten clients in a round, and ``conf/experiment/race.yaml`` with 50."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", default="tf32", choices=get_args(Precision), help="see engine.precision")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["cohort", "seats", "plain"])
    parser.add_argument("--jobs", nargs="+", metavar="JOB", help="those whose names contain one of these; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="measurements, after one that is thrown away")
    parser.add_argument("--steps", type=int, default=50, help="steps of each measurement")
    parser.add_argument("--width", type=float, default=1.0, help="factor of the models' widths, for a try on a CPU")
    parser.add_argument("--tuned", action="store_true", help="let cuDNN try its algorithms (cudnn.benchmark)")


def run(options: argparse.Namespace) -> list[Goal]:
    device = resolve_device(options.device)
    with ExitStack() as stack:
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=options.tuned))
        stack.enter_context(arithmetic(options.precision, device))
        log_reasons(stack)
        flops, copied = matrix_rate(device), copy_rate(device)
        print(f"{device}, {options.precision}: products {flops / 1e12:.3g} TFLOP/s, copies {copied / 1e9:.3g} GB/s\n")
        print("ms of a step, s of the job")
        sides = ("limit", *options.engines)
        print_row("job", (f"{side} {unit}" for side in sides for unit in ("ms", "s")), width=11)
        ratios = []
        for job in (job for job in JOBS if not options.jobs or any(word in job.name for word in options.jobs)):
            steps = [limit(job, options.width, flops, copied), *measure(job, device, options).values()]
            ratios.append(min(steps[1:]) / steps[0])
            print_row(job.name, (time for step in steps for time in (step * 1e3, step * job.steps)), width=11)
    slowest = max(ratios, default=math.nan)
    return [Goal("the slowest job with its fastest engine, in times its limit", slowest, most=2.5)]


def log_reasons(stack: ExitStack) -> None:
    """Let engines log to stderr, until ``stack`` closes, why they train clients by ``plain``."""
    logger, handler = logging.getLogger(structure.__name__), logging.StreamHandler()
    stack.callback(logger.setLevel, logger.level)
    stack.callback(logger.removeHandler, handler)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def measure(job: Work, device: torch.device, options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of a step of ten clients by engine; only ``seats`` trains several levels at once."""
    steps, training = options.steps, TrainOptions(learning_rate=0.01, epochs=1, batch_size=job.batch)

    def client(level: str, seed: int) -> TrainingJob:
        model = job.build(options.width * LEVELS[level])
        return TrainingJob(model=model.to(device), split=job.split(seed, steps).to(device), seed=seed)

    def train(engine: str) -> float:
        clients = [[client(level, seed) for seed in range(TOGETHER // len(job.levels))] for level in job.levels]
        groups = [list(chain.from_iterable(clients))] if engine == "seats" else clients
        seconds = [timed(partial(train_together, group, training, engine=engine), device) for group in groups]
        return math.fsum(seconds) / float(steps)

    times = in_turns({engine: partial(train, engine) for engine in options.engines}, options.rounds)
    return {engine: statistics.median(seconds) for engine, seconds in times.items()}


def limit(job: Work, width: float, flops: float, copied: float) -> float:
    """Return the lower bound on the seconds of a step of ten clients.

    ``flops`` and ``copied`` are the operations and the copied bytes per second of the device.
    """
    operations = moved = 0
    example = job.split(0, 1).inputs
    for level in job.levels:
        model = job.build(width * LEVELS[level])
        cost = profile(model, example[:1])
        operations += 2 * PASSES * cost.macs * job.batch
        moved += 4 * (TRAFFIC["parameter"] * cost.parameters + TRAFFIC["output"] * count_outputs(model, example))
    return TOGETHER // len(job.levels) * max(operations / flops, moved / copied)


def count_outputs(model: nn.Module, example: Tensor) -> int:
    """Return the number of output values of all layers of a model for a batch."""
    sizes: list[int] = []

    def count(layer: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model.train()(example)
    return sum(sizes)


def matrix_rate(device: torch.device) -> float:
    """Return the operations per second of a product of large matrices."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.rand(size, size, device=device) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: left @ right, device) for _ in range(5))


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second, read and written, of a large copy."""
    source = torch.rand(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(timed(lambda: target.copy_(source), device) for _ in range(5))


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, including the work that it starts on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
