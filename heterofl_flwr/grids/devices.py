"""Simulated devices: what a client's device can do, and what is drawn for it in a round.

Everything here is a function of (seed, round, partition, rate); nothing is kept from one round to the next.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from types import MappingProxyType

import torch
from torch import nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.options import Decay, NotNegative, Positive, Share, group
from heterofl_flwr.core.levels import rate_of
from heterofl_flwr.core.randomness import generator
from heterofl_flwr.nn.nested import InnerWidths, mean_passes
from heterofl_flwr.nn.profile import build_and_profile

Workload = Callable[[str, int, float, int], float]
"""From the type of a message, a partition, its rate and its number of examples to the multiplications of the work."""


@group
class DeviceProfile:
    """Speed, availability and power of the devices of one level."""

    macs_per_second: Positive
    """multiplications (with addition) in a second, as training reaches them"""
    download: Positive
    """bytes in a second"""
    upload: Positive
    """bytes in a second"""
    available: Share = 1.0
    """share of the rounds in which a device is there"""
    drop_out: Decay = 0.0
    """probability that a device of a round drops out before its end"""
    least_work: Share = 1.0
    """smallest share of its steps that a client runs; the share is drawn uniformly from there to 1"""
    jitter: NotNegative = 0.0
    """spread of the speed from round to round: the standard deviation of its logarithm"""
    compute_watts: NotNegative = 0.0
    """what computing draws, beyond what the device draws anyway"""
    radio_watts: NotNegative = 0.0
    """what sending or receiving draws"""


Profiles = Mapping[str, DeviceProfile] | Mapping[float, DeviceProfile]


@dataclass(frozen=True, slots=True)
class Turn:
    """One client's part in one round."""

    seed: int
    server_round: int
    partition: int
    rate: float

    def draws(self, purpose: str) -> random.Random:
        """Return the generator for one purpose."""
        return generator(self.seed, f"device-{purpose}", self.server_round, self.partition)

    @property
    def progress(self) -> float:
        """Fraction of the work that is done when the client drops out."""
        return self.draws("reached").random()


class Devices:
    """The devices of a federation.

    Parameters
    ----------
    profiles : Mapping[str, DeviceProfile] | Mapping[float, DeviceProfile]
        By level or rate. A rate that is not there has the profile of the nearest larger one that is, or of the largest.
    work : Workload
        How much a client computes; ``heterofl_flwr.grids.devices.TrainingCost`` measures it.
    deadline : float
        The simulated seconds for which a round waits for replies; by default without limit.
    """

    def __init__(self, profiles: Profiles, work: Workload, *, deadline: float = math.inf) -> None:
        if not isinstance(profiles, Mapping) or not profiles:
            raise ConfigError(f"device profiles are {profiles!r}; expected a mapping from levels to DeviceProfile")
        for level, profile in profiles.items():
            if not isinstance(profile, DeviceProfile):
                raise ConfigError(f"the profile of level {level} is {profile!r}; expected a DeviceProfile")
        if not deadline > 0:
            raise ConfigError(f"deadline is {deadline!r}; expected a number of seconds over 0")
        self.work = work
        self.deadline = deadline
        self._profiles = {rate_of(level): profile for level, profile in profiles.items()}

    def profile(self, rate: float) -> DeviceProfile:
        """Return the profile of a rate."""
        return self._profiles[min((level for level in self._profiles if level >= rate), default=max(self._profiles))]

    def is_away(self, turn: Turn) -> bool:
        """Return whether a client's device is not available."""
        return turn.draws("away").random() >= self.profile(turn.rate).available

    def drops_out(self, turn: Turn) -> bool:
        """Return whether a client's device drops out before the end of the round."""
        return turn.draws("drop-out").random() < self.profile(turn.rate).drop_out

    def step_share(self, turn: Turn) -> float:
        """Return the share of its steps that a client runs."""
        return turn.draws("work").uniform(self.profile(turn.rate).least_work, 1.0)

    def costs(self, turn: Turn, macs: float, down: int, up: int) -> tuple[float, float]:
        """Return the seconds and joules of receiving, computing and sending these amounts."""
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
"""Levels a to e, from a small server to a gateway of sensors."""

BUNDLED: Mapping[str, Mapping[str, DeviceProfile]] = MappingProxyType({"edge": EDGE})
"""The sets of profiles that a setting can name."""


PASSES = 3
"""Cost of training on an example, in forward passes: the backward pass counts as two."""


class TrainingCost:
    """The work of training on one's own examples; each rate's model is measured once.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        From a rate to the model at that rate.
    example : torch.Tensor
        A batch of one input.
    epochs : int
        Passes over a client's examples in a round.
    inputs : float
        How many such inputs an example is made of: a row of text is read piece by piece.
    widths, rates : InnerWidths, Sequence[float]
        Which of the models of these rates inside a client's own a step trains too.
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
        """Return the multiplications of a client's work."""
        passes = mean_passes(self._widths, rate, self._rates)
        forward = math.fsum(number * self._macs(inner) for inner, number in passes.items())
        return PASSES * self._epochs * examples * (self._inputs * forward)
