"""Cost of the model of each level; the savings of a run against full-size FedAvg, and against each level alone."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from torch import Tensor

from heterofl_flwr.core.exchanged import exchanged_dtype, exchanged_parameters
from heterofl_flwr.core.levels import Mix, level_name
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.nested import InnerWidths, mean_passes
from heterofl_flwr.nn.profile import build_and_profile
from heterofl_flwr.transport.tensor_array import npy_size


@dataclass(frozen=True, slots=True)
class LevelCost:
    """The cost of one rate's model."""

    level: str  #: Its letter, or its rate as text.
    rate: float  #: Its rate.
    parameters: int  #: Number of parameters.
    macs: int  #: Multiplications of one forward pass of one sample.
    bytes: int  #: The size of its parameters in a message, headers included, one way: of those that are exchanged.


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
    def global_model(self) -> LevelCost:
        """The cost of the global model."""
        return self.by_rate[self.global_rate]

    def to_json(self) -> dict[str, object]:
        """Return the costs as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ModelCosts":
        """Return what ``to_json`` gave."""
        costs = _COSTS.validate_python(values)
        return cls(costs.global_rate, tuple(sorted(costs.levels, key=lambda cost: -cost.rate)))


_COSTS = TypeAdapter(ModelCosts)


class Costs:
    """Measures what a user's model costs at the rates of a mix, and at any other rate that a client has.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        From a rate to a model.
    mix : Mix
        The run's mix.
    example : torch.Tensor
        A batch of one input.
    """

    def __init__(self, build: Build, mix: Mix, example: Tensor) -> None:
        self.build, self.mix = build, mix
        self._example = example
        self._costs: dict[float, LevelCost] = {}
        self.add(mix.all_rates)

    def add(self, rates: Sequence[float]) -> bool:
        """Measure the rates that are not known yet; return whether there was one."""
        new = set(rates) - self._costs.keys()
        for rate in new:
            model, cost = build_and_profile(self.build, rate, self._example)
            # As measured of messages, to which it is compared.
            size = sum(
                npy_size(str(exchanged_dtype(parameter)).removeprefix("torch."), tuple(parameter.shape))
                for parameter in exchanged_parameters(model).values()
            )
            self._costs[rate] = LevelCost(level_name(rate), rate, cost.parameters, cost.macs, bytes=size)
        return bool(new)

    def model(self) -> ModelCosts:
        """Return all that is known."""
        return ModelCosts(self.mix.global_rate, tuple(self._costs[rate] for rate in sorted(self._costs, reverse=True)))


class Savings(NamedTuple):
    """The bytes of a run both ways, and the shares of full-size FedAvg's with equally many samples on each client."""

    bytes_sent: int
    bytes_full: int
    bytes_share: float
    macs_share: float


def bytes_sent(records: Sequence[RoundRecord]) -> list[int]:
    """Return the bytes of each round, both ways."""
    return [record.bytes_down + record.bytes_up for record in records]


def full_bytes(record: RoundRecord, costs: ModelCosts) -> int:
    """Return the bytes that FedAvg with the global model would have sent in a round, both ways."""
    return costs.global_model.bytes * (len(record.rates) + len(record.rates.keys() - record.failures.keys()))


def savings(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Savings | None:
    """Return what the run saved; None where a rate's cost is not known, or there were no clients."""
    rates = [rate for record in records for rate in record.rates.values()]
    if costs is None or not rates or not set(rates) <= set(costs.by_rate):
        return None
    sent, full_size = sum(bytes_sent(records)), sum(full_bytes(record, costs) for record in records)
    macs = sum(costs.by_rate[rate].macs for rate in rates) / (costs.global_model.macs * len(rates) or 1)
    return Savings(sent, full_size, sent / full_size if full_size else math.nan, macs)


class Price(NamedTuple):
    """The client-rounds, bytes and multiplications of a mix, as fractions of one federation for each of its levels."""

    client_rounds: float
    bytes_share: float
    macs_share: float


def count_macs(mix: Mix, rates: Iterable[float], macs: Mapping[float, float], widths: InnerWidths = "none") -> float:
    """Return the multiplications of trainings of these rates with one example each, from those of a model by rate."""
    return sum(
        number * passes * macs[inner]
        for rate, number in Counter(rates).items()
        for inner, passes in mean_passes(widths, rate, mix.rates).items()
    )


def price(
    mix: Mix, rates: Sequence[float], costs: Mapping[float, tuple[float, float]], widths: InnerWidths = "none"
) -> Price:
    """Return the price of a mix at equal participation.

    A federation of one level has the clients that can hold it, each of which takes part as often as in the mix.

    Parameters
    ----------
    mix : Mix
        The mix.
    rates : Sequence[float]
        Rate of each training of a client in the mix.
    costs : Mapping[float, tuple[float, float]]
        Bytes and multiplications of a training, by rate.
    widths : InnerWidths
        Smaller models inside a client's that a step trains too (``train.distill``).
    """
    trainings, holders = Counter(rates), dict(zip(mix.rates, accumulate(mix.shares), strict=True))
    sent = sum(number * costs[rate][0] for rate, number in trainings.items())
    macs = count_macs(mix, rates, {rate: cost[1] for rate, cost in costs.items()}, widths)
    alone = [len(rates) * sum(share * costs[rate][kind] for rate, share in holders.items()) for kind in (0, 1)]
    return Price(1 / sum(holders.values()), sent / alone[0], macs / alone[1])
