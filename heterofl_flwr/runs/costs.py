"""What the model of each rate costs, measured once a rate and kept with the run."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from heterofl_flwr.core.levels import Mix, level_name
from heterofl_flwr.nn.profile import build_and_profile


@dataclass(frozen=True, slots=True)
class LevelCost:
    """The cost of one rate's model.

    Attributes
    ----------
    level
        Its letter, or its rate as text.
    rate
        Its rate.
    parameters
        Number of parameters.
    macs
        Multiplications of one forward pass of one sample.
    printed_flops
        What the paper prints as FLOPs.
    bytes
        What its parameters take on the wire, one way.
    """

    level: str
    rate: float
    parameters: int
    macs: int
    printed_flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """The costs of a run's rates, from the largest to the smallest."""

    global_rate: float
    levels: tuple[LevelCost, ...]

    @property
    def by_rate(self) -> Mapping[float, LevelCost]:
        """The costs by rate."""
        return {cost.rate: cost for cost in self.levels}

    @property
    def full(self) -> LevelCost:
        """The cost of the global model."""
        return self.by_rate[self.global_rate]

    def to_json(self) -> dict[str, object]:
        """Return the costs as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ModelCosts":
        """Return what ``to_json`` gave."""
        names = [field.name for field in fields(LevelCost)]
        levels = [LevelCost(**{name: own[name] for name in names}) for own in values["levels"]]
        return cls(values["global_rate"], tuple(sorted(levels, key=lambda cost: -cost.rate)))


Build = Callable[[float], nn.Module]


class Costs:
    """Measures what a user's model costs at the rates of a mix, and at any other rate that turns up.

    Parameters
    ----------
    build : Callable[[float], nn.Module] | Mapping[str, Callable[[float], nn.Module]]
        From a rate to a model; or that of each family by name, as ``Hybrid`` takes them. A rate's costs are then the
        means over families, which have equally many clients.
    mix : Mix
        The run's mix.
    example : torch.Tensor
        A batch of one input.
    """

    def __init__(self, build: Build | Mapping[str, Build], mix: Mix, example: torch.Tensor) -> None:
        self.builds = build if isinstance(build, Mapping) else {"": build}
        self.mix = mix
        self._example = example
        self._known: dict[float, LevelCost] = {}
        self.add(mix.rates)

    def add(self, rates: tuple[float, ...]) -> bool:
        """Measure the rates that are not known yet; return whether there was one."""
        new = sorted({rate for rate in rates if rate not in self._known}, reverse=True)
        self._known |= {rate: self._measure(rate) for rate in new}
        return bool(new)

    def model(self) -> ModelCosts:
        """Return all that is known."""
        return ModelCosts(self.mix.global_rate, tuple(self._known[rate] for rate in sorted(self._known, reverse=True)))

    def _measure(self, rate: float) -> LevelCost:
        found = [self._cost(build, rate) for build in self.builds.values()]
        means = [round(sum(numbers) / len(numbers)) for numbers in zip(*found, strict=True)]
        return LevelCost(level_name(rate), rate, *means)

    def _cost(self, build: Build, rate: float) -> tuple[int, int, int, int]:
        """Return the numbers of a ``LevelCost``."""
        model, cost = build_and_profile(build, rate, self._example)
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        return cost.parameters, cost.macs, cost.printed_flops, size
