"""What all sides of a comparison do: the paper's experiment on CIFAR10, two clients of each level a to e in a round."""

import os
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from heterofl_flwr.core import LEVELS
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Dataset, Split, load_dataset
from heterofl_flwr.nn import PAPER, profile
from heterofl_flwr.training import TrainingJob, TrainOptions
from heterofl_flwr.training.device import Precision

MIX = "a1-b1-c1-d1-e1"
RATES = tuple(rate for rate in LEVELS.values() for _ in range(2))
"""Of the clients that train."""

CLIENTS = 100
"""Parts of the data, of which ten are trained on; batch norm is measured on all."""

BATCH = 10
IMAGES, ROOT = "HETEROFL_BENCH_IMAGES", "HETEROFL_BENCH_ROOT"


@dataclass(frozen=True, slots=True)
class Experiment:
    """The size of a measurement.

    Attributes
    ----------
    root
        CIFAR10, laid out as on the hub; empty for random images.
    steps
        Of each client in a round.
    device
        Where clients compute.
    precision
        Of the products in a step.
    channels_last
        Whether our models' convolutions are held so.
    """

    root: str
    steps: int
    device: str
    precision: Precision = "float32"
    channels_last: bool = False

    @property
    def epochs(self) -> int:
        """Passes of a client over its images: the paper's five, or one where the steps cannot be cut in five."""
        return 1 if self.steps % 5 else 5

    @property
    def images(self) -> int:
        """Images of a client."""
        return BATCH * self.steps // self.epochs

    @property
    def options(self) -> TrainOptions:
        """How clients train."""
        return TrainOptions(
            learning_rate=0.1,
            epochs=self.epochs,
            batch_size=BATCH,
            augment="crop-flip",
            precision=self.precision,
        )

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which ``images`` returns this experiment's data."""
        return {IMAGES: str(self.images), ROOT: self.root}

    def data(self) -> Dataset:
        """Return the data of all clients."""
        return _data(self.root, self.images)

    def build(self, rate: float) -> nn.Module:
        """Return the model of a rate, the same at each call, on the device."""
        torch.manual_seed(0)
        model = PAPER["cifar10"].build()(rate).to(self.device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def work(self, number: int, model: nn.Module) -> TrainingJob:
        """Return what a client trains."""
        split = _part(self.data().train, number, self.images).to(self.device)
        return TrainingJob(
            model=model, split=split, seed=derive(0, "gpu", number), classes=torch.arange(self.data().classes)
        )

    def tera_flop(self) -> float:
        """Return the floating point operations of a round, in 10^12.

        A multiplication with addition counts as two operations, and a step as three forward passes.
        """
        setup = PAPER["cifar10"]
        with torch.device("meta"):
            macs = sum(profile(setup.build()(rate), setup.example()).macs for rate in RATES)
        return macs * 2 * 3 * BATCH * self.steps / 1e12


def images() -> Dataset:
    """Return the data of the clients that train, for the setting ``data.name``; the environment tells their size."""
    number = int(os.environ[IMAGES])
    whole = _data(os.environ[ROOT], number)
    return Dataset("images", _part(whole.train, 0, len(RATES) * number), whole.test, whole.classes, whole.augment)


@cache
def _data(root: str, number: int) -> Dataset:
    if root:
        return load_dataset("cifar10", root)
    generator = torch.Generator().manual_seed(0)
    train, test = (_random(size, generator) for size in (CLIENTS * number, CLIENTS * number // 5))
    return Dataset("random images", train, test, 10, "crop-flip")


def _random(number: int, generator: torch.Generator) -> Split:
    inputs = torch.randn(number, 3, 32, 32, generator=generator)
    return Split(inputs, torch.randint(10, (number,), generator=generator))


def _part(split: Split, number: int, size: int) -> Split:
    return split.take(torch.arange(number * size, (number + 1) * size))
