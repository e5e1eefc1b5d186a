"""Costs of runs (rounds, bytes, multiplications, seconds, energy), and results over these costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import NamedTuple

from heterofl_flwr.app.workload import Workload, load_data
from heterofl_flwr.common.errors import HeteroFLError
from heterofl_flwr.core import formatting
from heterofl_flwr.data.known import short_name
from heterofl_flwr.data.splits import by_owner, owner_column
from heterofl_flwr.experiments import small_mnist
from heterofl_flwr.grids.device_costs import PASSES
from heterofl_flwr.nn import PAPER
from heterofl_flwr.runs.costs import count_macs
from heterofl_flwr.runs.scores import mode_of
from heterofl_flwr.settings.definitions import DataSettings, Settings
from simulations import fedh2l_data
from simulations.results.configurations import Configuration, possible, shown
from simulations.results.runs import Run
from simulations.results.statistics import Summary, summarise

PIECE = 64
"""Number of words in a piece of text; a piece counts as one example, like an image."""
EXAMPLES: Mapping[str, int] = {
    "mnist": 60_000,
    "cifar10": 50_000,
    "wikitext2": 100 * math.ceil(20_886 / PIECE),
    "simulations.small_mnist:load": small_mnist.TRAIN,
    f"{small_mnist.__name__}:load": small_mnist.TRAIN,
    **{f"{fedh2l_data.__name__}:{name}_seeds": number for name, number in fedh2l_data.SEEDS.items()},
}
"""Number of training examples (or pieces) by data set; data sets not listed here are loaded and counted."""
UNCERTAIN = ("multiplications", "simulated-seconds", "joules")  # costs that not all runs have


def bytes_sent(run: Run) -> list[int]:
    """Return the cumulative bytes of training messages after each round, sent and received.

    With FedH2L, the size of the seed set is added once for each client that takes part: one byte for each value and for
    the label of each example. Simulations do not send the seed set: clients read it from the data set.
    """
    settings, known, sent = run.settings, set[int](), []
    seed_set = 0
    if settings.server.strategy == "fedh2l":
        seed_set = settings.distill.seed_size * (values_of(settings) + 1)
    for record in run.records:
        took_part = record.rates.keys() - record.unsent
        sent.append(record.bytes_down + record.bytes_up + seed_set * len(took_part - known))
        known |= took_part
    return list(accumulate(sent))


def multiplications(run: Run) -> list[float]:
    """Return the cumulative multiply-accumulate operations of all clients' training after each round.

    All clients are assumed to have equally many examples, which is nearly true. Neither evaluation nor clients that
    were sent no message count. Values are NaN if the folder has no costs of models, as with FedH2L, or if the data set
    is not available.
    """
    settings, costs = run.settings, run.costs.by_rate if run.costs else {}
    rates = {rate for record in run.records for rate in record.rates.values()}
    unknown = [math.nan] * len(run.records)
    if not {*rates, *settings.mix.rates} <= costs.keys():
        return unknown
    try:
        train = train_size(settings.data, run.clients)
    except HeteroFLError:
        return unknown
    macs = {rate: PASSES * settings.train.epochs * train / run.clients * cost.macs for rate, cost in costs.items()}
    widths = settings.train.distill
    return list(accumulate(count_macs(settings.mix, one.received_rates, macs, widths) for one in run.records))


@lru_cache(maxsize=8)
def train_size(data: DataSettings, clients: int) -> int:
    """Return the number of training examples (or pieces) of all clients; load data sets that ``EXAMPLES`` lacks."""
    if (short := short_name(data.name)) in EXAMPLES:
        return EXAMPLES[short]
    dataset = load_data(data)
    number = len(dataset.train)
    if owner_column(data.split) is not None:  # examples of owners beyond the number of clients are not used
        number = sum(map(len, by_owner(dataset, clients)[0]))
    return number * (math.ceil(dataset.train.inputs.shape[1] / PIECE) if dataset.train.reading else 1)


def values_of(settings: Settings) -> int:
    """Return the number of values in an example."""
    setup = PAPER.get(short_name(settings.data.name))
    return (setup.example() if setup else Workload(settings).example()).numel()


class Axis(NamedTuple):
    """A kind of cost: its cumulative sums after each round of a run, its number format, and its axis label."""

    sums: Callable[[Run], Sequence[float]]
    write: Callable[[float], str]
    label: str


def _summed(field: str) -> Callable[[Run], Sequence[float]]:
    """Return a function of a run that gives the cumulative sums of a field of its records."""
    return lambda run: list(accumulate(getattr(record, field) for record in run.records))


def _simulated(field: str) -> Callable[[Run], Sequence[float]]:
    """Return ``_summed`` of a field about simulated devices, with NaN for runs without such devices."""
    sums = _summed(field)
    return lambda run: sums(run) if run.settings.devices.profile else [math.nan] * len(run.records)


AXES: Mapping[str, Axis] = {
    "rounds": Axis(lambda run: [record.server_round for record in run.records], formatting.number, "round"),
    "bytes": Axis(bytes_sent, formatting.size, "bytes sent and received for training, all clients"),
    "multiplications": Axis(multiplications, formatting.count, "multiplications of training, all clients"),
    "seconds": Axis(_summed("seconds"), formatting.duration, "seconds on the machine that ran it, evaluation included"),
    "simulated-seconds": Axis(_simulated("simulated_seconds"), formatting.duration, "seconds on the simulated devices"),
    "joules": Axis(_simulated("joules"), formatting.energy, "energy of the simulated devices, an estimate"),
}


@cache
def spent(run: Run, axis: str) -> Sequence[float]:
    """Return the cumulative cost of a run after each round."""
    return AXES[axis].sums(run)


def axes_of(configurations: Sequence[Configuration]) -> list[str]:
    """Return the names of the axes, without kinds of cost that no run has."""
    runs = [run for one in configurations for run in one.runs]
    return [name for name in AXES if name not in UNCERTAIN or any(spent(run, name)[-1] > 0 for run in runs)]


class Point(NamedTuple):
    """A point of a curve: the mean cost over seeds until an evaluation, and the results; accuracies in percent."""

    spent: float
    reached: Summary


def curve(configuration: Configuration, metric: str, axis: str = "rounds") -> list[Point]:
    """Return a point for each round in which all seeds have the metric."""
    seeds = [_evaluations(run, metric, axis) for run in configuration.runs]
    found = []
    for number in sorted(set.intersection(*(set(own) for own in seeds))):
        costs, values = zip(*(own[number] for own in seeds), strict=True)
        found.append(Point(math.fsum(costs) / len(costs), summarise(values, possible(metric))))
    return found


def spent_until(run: Run, metric: str, target: float, axis: str) -> float | None:
    """Return the cost of a run until the first evaluation that reached a target; None if no evaluation did."""
    better = min if mode_of(metric) == "min" else max
    goal, evaluations = shown(metric, target), _evaluations(run, metric, axis).values()
    return next((cost for cost, value in evaluations if better(value, goal) == value), None)


def _evaluations(run: Run, metric: str, axis: str) -> dict[int, tuple[float, float]]:
    """Return (cost, metric) by round, for rounds in which enough clients measured the metric."""
    rounds = zip(run.scores.items(), spent(run, axis), strict=True)
    return {number: (cost, shown(metric, own[metric])) for (number, own), cost in rounds if metric in own}
