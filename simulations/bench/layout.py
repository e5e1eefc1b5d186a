"""Channels last: how much faster a step on a CPU is with it, and how far its gradients are from those in float64.

MNIST's pictures have a plain background, so many inputs of max pooling are equal, and which of them gets the gradient
depends on the last bit. Each such choice is a right gradient; ``--noise`` makes pictures without equal values.
"""

import argparse
import copy
import statistics
import time
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heterofl_flwr.core import LEVELS
from heterofl_flwr.data import load_dataset
from heterofl_flwr.nn import PAPER
from heterofl_flwr.nn.execution import channels_last
from simulations.bench.measure import Goal, in_turns

BATCH, STEPS = 10, 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=("mnist", "cifar10"), default="mnist", help="the paper's model and its data")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS), help="of the models")
    parser.add_argument("--root", help="folder with the data, as data.root")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of noise on pictures")
    parser.add_argument("--rounds", type=int, default=9, help="batches, each with parameters of its own")


def run(options: argparse.Namespace) -> list[Goal]:
    torch.set_num_threads(1)
    train = load_dataset(options.model, options.root).train
    print(f"batches of {BATCH}; one thread; seeds 0 to {options.rounds - 1}; medians\n")
    print(f"{'level':<6}{'error contiguous':>17}{'channels last':>15}{'times as fast':>15}")
    gains = []
    for level in options.levels:
        errors: dict[bool, list[float]] = {False: [], True: []}
        ratios = []
        for seed in range(options.rounds):
            torch.manual_seed(seed)
            model = PAPER[options.model].build()(LEVELS[level]).train()
            rows = torch.randint(len(train), (BATCH,))
            x, y = train.inputs[rows].float(), train.targets[rows]
            x = x + options.noise * torch.randn_like(x)
            exact = gradient(copy.deepcopy(model).double(), x.double(), y, last=False)
            for last, own in errors.items():
                found = gradient(copy.deepcopy(model), x, y, last=last).double()
                own.append(float((found - exact).norm() / exact.norm()))
            times = in_turns({str(last): partial(seconds, model, x, y, last=last) for last in errors}, 2)
            ratios.append(statistics.median(times["False"]) / statistics.median(times["True"]))
        gains.append(statistics.median(ratios))
        print(
            f"{level:<6}{statistics.median(errors[False]):>17.1e}{statistics.median(errors[True]):>15.1e}{gains[-1]:>15.2f}"
        )
    return [Goal("the least gain", min(gains), least=0.95)]


def gradient(model: nn.Module, x: Tensor, y: Tensor, *, last: bool) -> Tensor:
    """Return the gradient of all parameters."""
    with channels_last(model) if last else nullcontext():
        found = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        return torch.cat([own.flatten() for own in found])


def seconds(model: nn.Module, x: Tensor, y: Tensor, *, last: bool) -> float:
    """Return the processor's seconds of a client's steps."""
    started = time.process_time()
    with channels_last(model) if last else nullcontext():
        for _ in range(STEPS):
            gradient(model, x, y, last=False)
    return time.process_time() - started
