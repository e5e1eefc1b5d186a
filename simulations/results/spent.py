"""What runs spent for what they reached: rounds, bytes, multiplications, seconds, energy."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from heterofl_flwr.common.errors import HeteroFLError
from heterofl_flwr.core import formatting
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.grids.devices import PASSES
from heterofl_flwr.nn.nested import mean_passes
from heterofl_flwr.runs.metrics import mode_of
from heterofl_flwr.settings.defaults import architectures, with_architecture
from heterofl_flwr.settings.definitions import Settings
from simulations.results.configurations import Configuration, possible, shown
from simulations.results.costs import profile_at, sizes_of, values_of
from simulations.results.runs import Run
from simulations.results.statistics import Summary, summarise

UNCERTAIN = ("multiplications", "simulated-seconds", "joules")  # the last two are of simulated devices


def bytes_sent(run: Run) -> list[int]:
    """Return the bytes of training messages up to the end of each round, both ways.

    Where there is a seed set, it is charged once to each client that takes part: a byte for each value of an example,
    and one for its label. No message of a simulation has it, as all clients read it from the data set.
    """
    settings, known, sent = run.settings, set[int](), []
    seed_set = 0
    if settings.server.strategy == "fedh2l":
        seed_set = settings.distill.seed_size * (values_of(settings) + 1)
    for record in run.records:
        sent.append(record.bytes_down + record.bytes_up + seed_set * len(record.rates.keys() - known))
        known |= record.rates.keys()
    return list(accumulate(sent))


def multiplications(run: Run) -> list[float]:
    """Return the multiplications (with addition) of all clients' training up to the end of each round.

    Clients have equally many examples here, which is so but for remainders and lost shards. Evaluation is left out.
    Not numbers where the data set or the model is no longer there.
    """
    try:
        return list(accumulate(_of_round(run, record) for record in run.records))
    except HeteroFLError:
        return [math.nan] * len(run.records)


def _of_round(run: Run, record: RoundRecord) -> float:
    train, _ = sizes_of(run.settings.data, run.clients)
    examples = train / run.clients
    models = [with_architecture(run.settings, name) for name in architectures(run.settings)] or [run.settings]
    clients = (_of_client(models[who % len(models)], rate, examples) for who, rate in record.rates.items())
    return math.fsum(clients)


def _of_client(settings: Settings, rate: float, examples: float) -> float:
    """Return what one client computes in a round, with the widths inside its model that it trains too."""
    passes = mean_passes(settings.train.distill, rate, settings.mix.rates)
    one = math.fsum(number * profile_at(settings, other).macs for other, number in passes.items())
    trained = settings.train.epochs * examples
    if settings.server.strategy != "fedh2l":
        return PASSES * one * trained
    # It also says what it makes of the seed batch, and learns from it beside its own data.
    distill = settings.distill
    own = min(settings.train.batch_size, examples)
    return one * (PASSES * (trained + distill.steps * (own + distill.seed_batch)) + distill.seed_batch)


class Axis(NamedTuple):
    """What a run spends: the sums by the end of each round, how they are written, and the label of their axis."""

    spent: Callable[[Run], Sequence[float]]
    write: Callable[[float], str]
    label: str


def _summed(field: str) -> Callable[[Run], Sequence[float]]:
    """Return a function from a run to the sums of a field of its records by the end of each round."""
    return lambda run: list(accumulate(getattr(record, field) for record in run.records))


AXES: Mapping[str, Axis] = {
    "rounds": Axis(lambda run: [record.server_round for record in run.records], formatting.number, "round"),
    "bytes": Axis(bytes_sent, formatting.size, "bytes sent and received for training, all clients"),
    "multiplications": Axis(multiplications, formatting.count, "multiplications of training, all clients"),
    "seconds": Axis(_summed("seconds"), formatting.duration, "seconds on the machine that ran it, evaluation included"),
    "simulated-seconds": Axis(_summed("simulated_seconds"), formatting.duration, "seconds on the simulated devices"),
    "joules": Axis(_summed("joules"), formatting.energy, "energy of the simulated devices, an estimate"),
}


def axes_of(configurations: Sequence[Configuration]) -> list[str]:
    """Return what is spent, without what is not known of any run."""
    runs = [run for one in configurations for run in one.runs]
    return [name for name in AXES if name not in UNCERTAIN or any(AXES[name].spent(run)[-1] > 0 for run in runs)]


class Point(NamedTuple):
    """An evaluation: what was spent by then, in the mean over seeds, and what was reached. Shares are in percent."""

    spent: float
    reached: Summary


def curve(configuration: Configuration, metric: str, axis: str = "rounds") -> list[Point]:
    """Return the evaluations of a metric that all seeds have; there may be none."""
    seeds = [_evaluations(run, metric, axis) for run in configuration.runs]
    found = []
    for number in sorted(set.intersection(*(set(own) for own in seeds))):
        spent, values = zip(*(own[number] for own in seeds), strict=True)
        found.append(Point(math.fsum(spent) / len(spent), summarise(values, possible(metric))))
    return found


def spent_until(run: Run, metric: str, target: float, axis: str) -> float | None:
    """Return what a run had spent at the first evaluation that reached a target; None if none did."""
    better = min if mode_of(metric) == "min" else max
    goal, evaluations = shown(metric, target), _evaluations(run, metric, axis).values()
    return next((spent for spent, value in evaluations if better(value, goal) == value), None)


def _evaluations(run: Run, metric: str, axis: str) -> dict[int, tuple[float, float]]:
    """Return, by round with a metric, what was spent by then and the metric; without those of too few clients."""
    rounds = zip(run.scores.items(), AXES[axis].spent(run), strict=True)
    return {number: (spent, shown(metric, own[metric])) for (number, own), spent in rounds if metric in own}
