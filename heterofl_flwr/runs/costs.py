"""Costs of each level's model, and of a whole run."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple, cast

from pydantic import TypeAdapter
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.exchanged import exchanged_dtype, exchanged_parameters
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.nn.inner_widths import InnerWidths, mean_passes
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.profile import build_and_profile
from heterofl_flwr.settings.validate import flatten
from heterofl_flwr.transport.arrays import npy_size


@dataclass(frozen=True, slots=True)
class LevelCost:
    """Costs of the model of one rate."""

    level: str  #: Letter of the level, or the rate as text.
    rate: float  #: Rate of the model.
    parameters: int  #: Number of parameters.
    macs: int  #: Multiplications of a forward pass of one example.
    bytes: int  #: Size of the exchanged parameters in one message, including headers.


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """Costs of the models of all rates in a run, the largest model first."""

    global_rate: float
    levels: tuple[LevelCost, ...]

    @property
    def by_rate(self) -> Mapping[float, LevelCost]:
        """Costs of each model by rate."""
        return {cost.rate: cost for cost in self.levels}

    @property
    def global_model(self) -> LevelCost:
        """Costs of the global model."""
        return self.by_rate[self.global_rate]


COSTS = TypeAdapter(ModelCosts)


class Costs:
    """Measured costs of a run's models, for the rates of the mix and for rates passed to ``add``.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        Function from a rate to a new model.
    mix : str | Mix
        The run's mix.
    example : torch.Tensor
        A batch with one example.
    """

    def __init__(self, build: Build, mix: str | Mix, example: Tensor) -> None:
        self.build, self.mix = build, Mix.parse(mix)
        self._example = example
        self._costs: dict[float, LevelCost] = {}
        self.add(self.mix.all_rates)

    def add(self, rates: Sequence[float]) -> bool:
        """Measure the model of each rate in ``rates``, unless it is measured already; return whether any was new."""
        new = set(rates) - self._costs.keys()
        for rate in new:
            model, cost = build_and_profile(self.build, rate, self._example)
            # The size in messages, because it is compared with bytes sent.
            size = sum(
                npy_size(str(exchanged_dtype(parameter)).removeprefix("torch."), tuple(parameter.shape))
                for parameter in exchanged_parameters(model).values()
            )
            self._costs[rate] = LevelCost(level_name(rate), rate, cost.parameters, cost.macs, bytes=size)
        return bool(new)

    def model(self) -> ModelCosts:
        """Return the costs for all measured rates."""
        return ModelCosts(self.mix.global_rate, tuple(self._costs[rate] for rate in sorted(self._costs, reverse=True)))


class Savings(NamedTuple):
    """Costs of a run and of full-size FedAvg, which sends the global model to the same clients."""

    bytes_sent: int  # of the run, in both directions
    bytes_full: int  # of full-size FedAvg
    bytes_share: float  # bytes of the run, divided by those of full-size FedAvg
    macs_share: float  # the same for multiplications


def bytes_sent(records: Sequence[RoundRecord]) -> list[int]:
    """Return the bytes sent in each round, in both directions."""
    return [record.bytes_down + record.bytes_up for record in records]


def full_bytes(record: RoundRecord, costs: ModelCosts) -> int:
    """Return the bytes that a round would send if all its clients trained the global model.

    For a client without a usable reply, only the model that it receives is counted. For a client that received none,
    nothing is counted.
    """
    # Histories of older versions have no numbers of answers.
    answered = record.answered if record.expected else len(record.rates.keys() - record.failures.keys())
    return costs.global_model.bytes * (len(record.received_rates) + answered)


def read_mix(settings: Mapping[str, object]) -> tuple[Mix, InnerWidths]:
    """Return the mix (default: ``a``) and the rule for inner widths (default: ``none``) in a run's settings."""
    flat = flatten(settings)
    try:
        mix = Mix.parse(str(flat.get("mix", "a")))
    except ConfigError:  # another app's setting of this name
        mix = Mix.parse("a")
    return mix, cast("InnerWidths", flat.get("train.distill", "none"))


def savings(
    records: Sequence[RoundRecord], costs: ModelCosts | None, settings: Mapping[str, object] = MappingProxyType({})
) -> Savings | None:
    """Return the costs of a run and of full-size FedAvg; None if no client trained or a rate's cost is unknown.

    With ``train.distill`` in ``settings``, multiplications include smaller models inside clients' models.
    """
    rates, (mix, widths) = [rate for record in records for rate in record.received_rates], read_mix(settings)
    inner = () if widths == "none" else mix.rates
    if costs is None or not rates or not {*rates, *inner} <= costs.by_rate.keys():
        return None
    sent, full_size = sum(bytes_sent(records)), sum(full_bytes(record, costs) for record in records)
    macs = count_macs(mix, rates, {rate: cost.macs for rate, cost in costs.by_rate.items()}, widths)
    share = macs / (costs.global_model.macs * len(rates) or 1)
    return Savings(sent, full_size, sent / full_size if full_size else math.nan, share)


class Price(NamedTuple):
    """Costs of a mix, divided by the total costs of separate federations, one federation for each level."""

    client_rounds: float  # number of trainings of clients, divided by the number in all federations together
    bytes_share: float  # the same for bytes
    macs_share: float  # the same for multiplications


def count_macs(mix: Mix, rates: Iterable[float], macs: Mapping[float, float], widths: InnerWidths) -> float:
    """Return the multiplications that all clients together need for the forward passes of one example.

    ``rates`` has the rate of each client. ``macs`` maps rates to the multiplications of one pass. ``widths`` determines
    which smaller models inside a client's model run forward passes too; for widths that are drawn, the result is the
    mean.
    """
    return sum(
        number * passes * macs[inner]
        for rate, number in Counter(rates).items()
        for inner, passes in mean_passes(widths, rate, mix.rates).items()
    )


def price(
    mix: Mix, rates: Sequence[float], costs: Mapping[float, tuple[float, float]], widths: InnerWidths = "none"
) -> Price:
    """Return the costs of a mix, divided by the total costs of separate federations, one federation for each level.

    The federation of a level consists of all clients that can hold the level's model. In each federation, a client
    trains as often as a client of the mix does on average.

    Parameters
    ----------
    mix : Mix
        The mix.
    rates : Sequence[float]
        Rates at which clients trained in the run, with an entry for each training.
    costs : Mapping[float, tuple[float, float]]
        Bytes of a model and multiplications of one example, by rate.
    widths : InnerWidths
        Rule for the smaller models inside a client's model that are trained too (``train.distill``).
    """
    trainings, holders = Counter(rates), dict(zip(mix.rates, accumulate(mix.shares), strict=True))
    sent = sum(number * costs[rate][0] for rate, number in trainings.items())
    macs = count_macs(mix, rates, {rate: cost[1] for rate, cost in costs.items()}, widths)
    alone = [len(rates) * sum(share * costs[rate][kind] for rate, share in holders.items()) for kind in (0, 1)]
    # A user's model may have no multiplications that are counted.
    return Price(1 / sum(holders.values()), sent / alone[0], macs / alone[1] if alone[1] else math.nan)
