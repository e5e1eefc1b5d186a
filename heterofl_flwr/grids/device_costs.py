"""Simulated devices: speed, availability and power of the clients' devices."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType

import torch
from torch import nn

from heterofl_flwr.common.errors import ConfigError, check_takes
from heterofl_flwr.common.options import Decay, NotNegative, Positive, Share, group
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.core.randomness import generator
from heterofl_flwr.nn.inner_widths import InnerWidths, mean_passes
from heterofl_flwr.nn.profile import build_and_profile

Workload = Callable[[str, int, float, int], float]
"""Function from message type, partition, rate and number of examples to the number of multiplications."""


@group
class DeviceProfile:
    """Speed, availability and power of the devices of one level."""

    macs_per_second: Positive
    """multiply-accumulate operations per second that training reaches"""
    download: Positive
    """bytes per second"""
    upload: Positive
    """bytes per second"""
    available: Share = 1.0
    """fraction of the rounds in which the device is available"""
    drop_out: Decay = 0.0
    """probability that the device drops out during a round"""
    least_work: Share = 1.0
    """lower bound on the fraction of local steps that a client runs; the fraction is uniform from this bound to 1"""
    jitter: NotNegative = 0.0
    """standard deviation of the logarithm of the computing speed, which is drawn anew in each round"""
    compute_watts: NotNegative = 0.0
    """power of computing, beyond the idle power of the device"""
    radio_watts: NotNegative = 0.0
    """power of sending or receiving"""


Profiles = Mapping[str, DeviceProfile] | Mapping[float, DeviceProfile]


@dataclass(frozen=True, slots=True)
class Turn:
    """A client and a round, which determine draws for the client's device, and the client's assigned rate."""

    seed: int
    server_round: int
    partition: int
    rate: float

    def draws(self, purpose: str) -> random.Random:
        """Return a new random generator; equal turns and purposes give equal draws."""
        return generator(self.seed, f"device-{purpose}", self.server_round, self.partition)

    @property
    def progress(self) -> float:
        """Fraction of the client's work that is done when its device drops out."""
        return self.draws("reached").random()


class Devices:
    """Simulated devices of the clients of a federation.

    Parameters
    ----------
    profiles : Mapping[str, DeviceProfile] | Mapping[float, DeviceProfile]
        Profiles by level or rate. A rate without a profile uses the profile of the next larger rate. If no larger
        rate has a profile, it uses the profile of the largest rate.
    work : Workload
        Function ``(kind, partition, rate, examples)`` that returns the number of multiplications of a client in a
        round, such as a ``TrainingCost``. ``kind`` is the type of the message, such as ``train``.
    deadline : float
        Simulated seconds that a round waits for replies.
    """

    def __init__(self, profiles: Profiles, work: Workload, *, deadline: float = math.inf) -> None:
        values = profiles.values() if isinstance(profiles, Mapping) else ()
        if not values or not all(isinstance(profile, DeviceProfile) for profile in values):
            raise ConfigError(
                f"device profiles are {profiles!r}; expected a mapping from levels to DeviceProfile, such as "
                "{'a': DeviceProfile(macs_per_second=1e9, download=1e6, upload=1e6)}"
            )
        if isinstance(deadline, bool) or not isinstance(deadline, int | float) or not deadline > 0:
            raise ConfigError(f"deadline is {deadline!r}; expected a number of seconds above 0")
        check_takes("work", work, "kind", "partition", "rate", "examples")
        self.work = work
        self.deadline = deadline
        self._profiles = {rate_of(level): profile for level, profile in profiles.items()}

    def profile(self, rate: float) -> DeviceProfile:
        """Return the profile of the device of a client with this rate."""
        return self._profiles[min((level for level in self._profiles if level >= rate), default=max(self._profiles))]

    def is_away(self, turn: Turn) -> bool:
        """Return True if the client's device is unavailable in this round."""
        return turn.draws("away").random() >= self.profile(turn.rate).available

    def drops_out(self, turn: Turn) -> bool:
        """Return True if the client's device drops out during the round, before it has sent its reply."""
        return turn.draws("drop-out").random() < self.profile(turn.rate).drop_out

    def step_share(self, turn: Turn) -> float:
        """Return the fraction of the local steps that the client runs in the round, drawn from ``least_work`` to 1."""
        return turn.draws("work").uniform(self.profile(turn.rate).least_work, 1.0)

    def costs(self, turn: Turn, macs: float, down: int, up: int) -> tuple[float, float]:
        """Return seconds and joules to receive ``down`` bytes, do ``macs`` multiplications and send ``up`` bytes."""
        profile = self.profile(turn.rate)
        pace = turn.draws("pace").lognormvariate(0.0, profile.jitter)
        computing = macs / (profile.macs_per_second * pace)
        sending = down / profile.download + up / profile.upload
        return computing + sending, computing * profile.compute_watts + sending * profile.radio_watts


# Multiplications, bytes down and bytes up in a second, then the other fields of DeviceProfile in their order.
_EDGE = {
    "a": (50e9, 12.5e6, 6.25e6, 0.95, 0.01, 1.0, 0.1, 40.0, 1.5),  # a small server on a fast line
    "b": (20e9, 6.25e6, 2.5e6, 0.9, 0.02, 0.8, 0.2, 15.0, 1.2),  # a laptop at home
    "c": (5e9, 3.125e6, 1.25e6, 0.8, 0.05, 0.5, 0.3, 4.0, 1.0),  # a telephone on a wireless network
    "d": (1e9, 1.25e6, 0.625e6, 0.8, 0.05, 0.5, 0.3, 3.0, 0.8),  # a single-board computer in a cabinet
    "e": (0.2e9, 0.25e6, 0.125e6, 0.7, 0.1, 0.5, 0.3, 1.0, 0.5),  # a gateway of a sensor network on a thin line
}
_NAMES = [field.name for field in fields(DeviceProfile)]
EDGE: Mapping[str, DeviceProfile] = MappingProxyType(
    {level: DeviceProfile(**dict(zip(_NAMES, values, strict=True))) for level, values in _EDGE.items()}
)
"""Profiles of levels a to e, from a small server to a gateway of sensors: ``edge`` in ``devices.profile``."""

PASSES = 3
"""Cost of a training step in forward passes. The backward pass counts as two forward passes."""


class TrainingCost:
    """Callable that returns the number of multiplications of a client's training in a round.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        Function from a rate to a new model.
    example : torch.Tensor
        An example input, as a batch of size 1.
    epochs : int
        Passes over a client's examples in a round.
    inputs : float
        Number of model inputs for each training example. For text it is above 1, because an example is a long row
        of tokens that is split into several inputs.
    widths, rates : InnerWidths, Sequence[float]
        Choice of the smaller models that a step trains too, and all rates of the mix.
    """

    def __init__(
        self,
        build: Callable[[float], nn.Module],
        example: torch.Tensor,
        *,
        epochs: int = 1,
        inputs: float = 1.0,
        widths: InnerWidths = "none",
        rates: Sequence[float] = (),
    ) -> None:
        self._epochs, self._inputs, self._widths, self._rates = epochs, inputs, widths, rates
        self._macs = cache(lambda rate: build_and_profile(build, rate, example)[1].macs)

    def __call__(self, kind: str, partition: int, rate: float, examples: int) -> float:
        """Return the number of multiplications. ``kind`` and ``partition`` have no effect."""
        passes = mean_passes(self._widths, rate, self._rates)
        forward = math.fsum(number * self._macs(inner) for inner, number in passes.items())
        return PASSES * self._epochs * examples * (self._inputs * forward)
