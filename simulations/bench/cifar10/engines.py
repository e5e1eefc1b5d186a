"""Our engines, called directly: the training of a round's clients without messages, slices and averages."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from heterofl_flwr.data import Split
from heterofl_flwr.nn import collect_moments, with_static_norm
from heterofl_flwr.training import evaluate_both, input_batches, train_together
from simulations.bench.cifar10.task import RATES, Experiment

CHECKED_STEPS = 5
TOLERANCES = {("cpu", "float32"): (1e-3, 0.3), ("cuda", "float32"): (0.05, 0.3)}
"""How far engines may part, as a share of the way that parameters go: the median client, and the worst.

At this learning rate rounding grows fast where a ReLU flips; and a GPU rounds to 10 bits in convolutions.
"""

ROUGHLY = (0.3, 0.6)
"""The same in bfloat16, which rounds to 7 bits."""


class Engine:
    """The training of a round by one engine; ``cohort`` gets the two clients of a level at once.

    Parameters
    ----------
    name : str
        Of the engine.
    experiment : Experiment
        What is trained.
    """

    def __init__(self, name: str, experiment: Experiment) -> None:
        self._name, self._experiment = name, experiment
        self._together = 2 if name == "cohort" else 1
        # As in a run: a module for each level, or as many as train at once.
        models = {rate: [experiment.build(rate) for _ in range(self._together)] for rate in dict.fromkeys(RATES)}
        self._received = {rate: _values(own[0]) for rate, own in models.items()}
        self._works = [
            experiment.work(number, models[rate][number % self._together]) for number, rate in enumerate(RATES)
        ]

    def round(self) -> list[Tensor]:
        """Train all clients from the start; return how far the parameters of each went."""
        ways = []
        for first in range(0, len(RATES), self._together):
            numbers = range(first, first + self._together)
            for number in numbers:
                _load(self._works[number].model, self._received[RATES[number]])
            train_together([self._works[number] for number in numbers], self._experiment.options, engine=self._name)
            ways += [self._way(number) for number in numbers]
        return ways

    def seconds(self, rounds: int) -> float:
        """Return the median seconds of so many rounds, after one that warms up."""
        times = [timed(self.round, self._experiment.device) for _ in range(rounds + 1)]
        return statistics.median(times[1:])

    def _way(self, number: int) -> Tensor:
        pairs = zip(_values(self._works[number].model), self._received[RATES[number]], strict=True)
        return torch.cat([(value - received).flatten() for value, received in pairs])


def check_equal(name: str, reference: str, experiment: Experiment) -> float:
    """Return how far two engines part in a few steps, for the median client; raise if that is not the same work."""
    few = replace(experiment, steps=CHECKED_STEPS)
    pairs = zip(Engine(name, few).round(), Engine(reference, few).round(), strict=True)
    parts = [float((way - expected).norm() / expected.norm()) for way, expected in pairs]
    limits = TOLERANCES.get((torch.device(experiment.device).type, experiment.precision), ROUGHLY)
    found = statistics.median(parts), max(parts)
    if not (found[0] <= limits[0] and found[1] <= limits[1]):
        raise RuntimeError(
            f"engines {reference} and {name} part by {found[0]:.2g}, at worst {found[1]:.2g}, of the way that "
            f"parameters go in {CHECKED_STEPS} steps (expected {limits[0]:g} and {limits[1]:g} at most), so their "
            "times cannot be compared"
        )
    return found[0]


def seconds_of_moments(experiment: Experiment, batch_size: int) -> float:
    """Return the seconds in which the global model's static batch norm is measured, on all training images."""
    model, split = experiment.build(1.0), experiment.data().train.to(experiment.device)
    collect_moments(model, [split.inputs[:batch_size]])  # sets up the device's libraries
    return timed(lambda: collect_moments(model, input_batches(split, batch_size)), experiment.device)


def seconds_of_test(experiment: Experiment) -> float:
    """Return the seconds in which the global model is tested on all test images, with and without a mask."""
    model, split = experiment.build(1.0), experiment.data().test.to(experiment.device)
    static = with_static_norm(model, collect_moments(model, [split.inputs[:100]]))
    evaluate_both(static, Split(split.inputs[:100], split.targets[:100]), classes=range(10))
    return timed(lambda: evaluate_both(static, split, classes=range(10)), experiment.device)


def timed(call: Callable[[], object], device: str) -> float:
    """Return the seconds of a call, and of all that it asks a GPU for."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@torch.no_grad()
def _load(model: nn.Module, values: Sequence[Tensor]) -> None:
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.copy_(value)
