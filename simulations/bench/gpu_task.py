"""What all sides of the benchmark of GPUs train: the paper's experiment on CIFAR10, and our engines called directly."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from heterofl_flwr.core import LEVELS
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Dataset, Split, load_dataset
from heterofl_flwr.nn import PAPER, profile
from heterofl_flwr.training import TrainingJob, TrainOptions, train_together
from heterofl_flwr.training.device import Precision

MIX = "a1-b1-c1-d1-e1"
RATES = tuple(rate for rate in LEVELS.values() for _ in range(2))
"""Of the clients that train."""

CLIENTS = 100
"""Parts of the data, of which ten are trained on; batch norm is measured on all."""

BATCH = 10
IMAGES, ROOT = "HETEROFL_BENCH_IMAGES", "HETEROFL_BENCH_ROOT"
CHECKED_STEPS = 5
TOLERANCES = {("cpu", "float32"): (1e-3, 0.3), ("cuda", "float32"): (0.05, 0.3)}
"""How much engines may differ, as a share of the change of the parameters: the median client, and the worst.

At this learning rate rounding grows fast where a ReLU flips; and a GPU rounds to 10 bits in convolutions.
"""

ROUGHLY = (0.3, 0.6)
"""The same in bfloat16, which rounds to 7 bits."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """The size of a measurement."""

    root: str  # CIFAR10, laid out as on the hub; empty for random images
    steps: int  # of each client in a round
    device: str
    precision: Precision = "float32"  # of the products in a step

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
            learning_rate=0.1, epochs=self.epochs, batch_size=BATCH, augment="crop-flip", precision=self.precision
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
        return PAPER["cifar10"].build()(rate).to(self.device)

    def job(self, number: int, model: nn.Module) -> TrainingJob:
        """Return the training of a client."""
        data = self.data()
        split = _part(data.train, number, self.images).to(self.device)
        return TrainingJob(model=model, split=split, seed=derive(0, "gpu", number), classes=torch.arange(data.classes))

    def tera_flop(self) -> float:
        """Return the floating point operations of a round, in 10^12.

        A multiplication with addition counts as two operations, and a step as three forward passes.
        """
        setup = PAPER["cifar10"]
        with torch.device("meta"):
            macs = sum(profile(setup.build()(rate), setup.example()).macs for rate in RATES)
        return macs * 2 * 3 * BATCH * self.steps / 1e12


def images() -> Dataset:
    """Return the data of the clients that train, for the setting ``data.name``; the environment has their size."""
    number = int(os.environ[IMAGES])
    whole = _data(os.environ[ROOT], number)
    return Dataset("images", _part(whole.train, 0, len(RATES) * number), whole.test, whole.classes, whole.augment)


@cache
def _data(root: str, number: int) -> Dataset:
    if root:
        return load_dataset("cifar10", root)
    generator = torch.Generator().manual_seed(0)
    splits = []
    for size in (CLIENTS * number, CLIENTS * number // 5):
        inputs = torch.randn(size, 3, 32, 32, generator=generator)
        splits.append(Split(inputs, torch.randint(10, (size,), generator=generator)))
    return Dataset("random images", splits[0], splits[1], 10, "crop-flip")


def _part(split: Split, number: int, size: int) -> Split:
    return split.take(torch.arange(number * size, (number + 1) * size))


class Engine:
    """The training of a round by one engine; ``cohort`` gets the two clients of a level at once."""

    def __init__(self, name: str, experiment: Experiment) -> None:
        self._name, self._experiment = name, experiment
        self._together = 2 if name == "cohort" else 1
        # As in a run: a module for each level, or as many as train at once.
        models = {rate: [experiment.build(rate) for _ in range(self._together)] for rate in dict.fromkeys(RATES)}
        self._received = {rate: _values(own[0]) for rate, own in models.items()}
        self._jobs = [
            experiment.job(number, models[rate][number % self._together]) for number, rate in enumerate(RATES)
        ]

    def round(self) -> list[Tensor]:
        """Train all clients from the start; return the change of the parameters of each."""
        changes = []
        for first in range(0, len(RATES), self._together):
            numbers = range(first, first + self._together)
            with torch.no_grad():
                for number in numbers:
                    model, received = self._jobs[number].model, self._received[RATES[number]]
                    for parameter, value in zip(model.parameters(), received, strict=True):
                        parameter.copy_(value)
            train_together([self._jobs[number] for number in numbers], self._experiment.options, engine=self._name)
            for number in numbers:
                pairs = zip(_values(self._jobs[number].model), self._received[RATES[number]], strict=True)
                changes.append(torch.cat([(value - received).flatten() for value, received in pairs]))
        return changes

    def seconds(self, rounds: int) -> float:
        """Return the median seconds of so many rounds, after one that warms up."""
        times = [timed(self.round, self._experiment.device) for _ in range(rounds + 1)]
        return statistics.median(times[1:])


def _values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def check_equal(name: str, reference: str, experiment: Experiment) -> float:
    """Return how much two engines differ in a few steps, for the median client; raise if that is not the same work."""
    few = replace(experiment, steps=CHECKED_STEPS)
    pairs = zip(Engine(name, few).round(), Engine(reference, few).round(), strict=True)
    parts = [float((way - expected).norm() / expected.norm()) for way, expected in pairs]
    limits = TOLERANCES.get((torch.device(experiment.device).type, experiment.precision), ROUGHLY)
    found = statistics.median(parts), max(parts)
    if not (found[0] <= limits[0] and found[1] <= limits[1]):
        raise RuntimeError(
            f"engines {reference} and {name} differ by {found[0]:.2g}, at worst {found[1]:.2g}, of the parameters' "
            f"change in {CHECKED_STEPS} steps (expected {limits[0]:g} and {limits[1]:g} at most), so their "
            "times cannot be compared"
        )
    return found[0]


def timed(call: Callable[[], object], device: str) -> float:
    """Return the seconds of a call, and of all that it asks a GPU for."""

    def now() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    call()
    return now() - start
