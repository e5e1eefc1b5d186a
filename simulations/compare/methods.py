"""Which method a run is, and what tells apart the runs of one method."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from heterofl_flwr.core.plan import ALL
from heterofl_flwr.grids.devices import PASSES
from heterofl_flwr.settings import Flat, Settings, to_flat
from heterofl_flwr.settings.presets import EXCHANGES, architectures, client_settings
from simulations.paper.printed import FREE, short_mix
from simulations.paper.runs import Run
from simulations.sweep.cost import facts_of, profile_at

OF_CHOICE: Mapping[str, str] = {
    "prefix": "HeteroFL",
    "rolling": "FedRolex",
    "random-level": "random slices by level",
    "random-client": "Federated Dropout",
}

EXCHANGE_NAMES: Mapping[str, str] = {"fedh2l": "FedH2L", "hybrid": "HeteroFL and FedH2L"}


@dataclass(frozen=True, slots=True)
class Contestant:
    """The finished runs of one method with one choice of settings, over seeds."""

    label: str  # method and mix, and what else tells it from others of the same method
    runs: tuple[Run, ...]  # a run for each seed, in their order

    @property
    def settings(self) -> Settings:
        """What all runs have in common, but for the seed."""
        return self.runs[0].settings


def method_of(settings: Settings) -> str:
    """Return the name of a method."""
    server = settings.server
    if server.strategy in EXCHANGE_NAMES:
        return EXCHANGE_NAMES[server.strategy]
    if server.shared != ALL:
        return "LG-FedAvg" if server.shared else "Standalone"
    if settings.train.ordered_dropout:
        return "FjORD"
    if server.weights == "examples" and len(settings.mix.rates) == 1:
        return "FedAvg"
    return OF_CHOICE[server.choose]


def contestants(runs: Iterable[Run]) -> dict[tuple[str, str], list[Contestant]]:
    """Return finished runs by data and split, and there by what they have in common beside the seed."""
    found: dict[tuple[str, str], dict[tuple[tuple[str, Flat], ...], dict[int, Run]]] = {}
    for run in sorted(runs, key=lambda run: run.started):
        if run.finished:
            alike = found.setdefault((run.job.data, run.job.split), {})
            alike.setdefault(tuple(_identity(run.settings).items()), {})[run.seed] = run
    return {place: _labelled(list(groups.values())) for place, groups in found.items()}


def _labelled(groups: Sequence[Mapping[int, Run]]) -> list[Contestant]:
    """Give groups of runs different labels; a later run of a seed has taken the place of an earlier one."""
    sorted_runs = [tuple(group[seed] for seed in sorted(group)) for group in groups]
    plain = [_plain(runs[0].settings) for runs in sorted_runs]
    made = []
    for label, runs in zip(plain, sorted_runs, strict=True):
        namesakes = [other[0].settings for other, own in zip(sorted_runs, plain, strict=True) if own == label]
        made.append(Contestant(f"{label}{_difference(runs[0].settings, namesakes)}", runs))
    return sorted(made, key=lambda one: one.label)


def _plain(settings: Settings) -> str:
    name = "+".join(architectures(settings)) or settings.model.name
    return f"{method_of(settings)} {short_mix(settings.mix)}, {name}"


def _difference(own: Settings, namesakes: Sequence[Settings]) -> str:
    """Return the settings in which runs of one method and mix differ."""
    flats = [_identity(settings) for settings in namesakes]
    mine = _identity(own)
    differing = [key for key in mine if len({flat[key] for flat in flats}) > 1]
    return "".join(f", {key}={mine[key]}" for key in differing)


def _identity(settings: Settings) -> dict[str, Flat]:
    """Return what makes runs of one contestant equal."""
    return {key: value for key, value in to_flat(settings).items() if not key.startswith(FREE)}


def multiplications(run: Run, root: str = "") -> list[float]:
    """Return the multiplications (with addition) of all clients' training up to the end of each round.

    Clients have equally many examples here, which is so but for remainders and lost shards. Evaluation is left out.
    """
    settings, rounds = run.settings, []
    for record in run.records:
        examples = facts_of(settings.data.name, root).train * settings.sample.fraction / max(len(record.rates), 1)
        clients = (_of_client(client_settings(settings, who), rate, examples) for who, rate in record.rates.items())
        rounds.append(math.fsum(clients))
    return list(accumulate(rounds))


def _of_client(settings: Settings, rate: float, examples: float) -> float:
    """Return what one client computes in a round."""
    one = _example(settings, rate)
    trained = settings.train.epochs * examples
    if settings.server.strategy not in EXCHANGES:
        return PASSES * one * trained
    # It also says what it makes of the seed batch, and learns from it beside its own data.
    distill = settings.distill
    own = min(settings.train.batch_size, examples)
    return one * (PASSES * (trained + distill.steps * (own + distill.seed_batch)) + distill.seed_batch)


def _example(settings: Settings, rate: float) -> float:
    """Return the multiplications of one example: with ordered dropout, the mean over the models of a batch."""
    rates: Sequence[float] = [rate]
    if settings.train.ordered_dropout:
        rates = [other for other in settings.mix.rates if other <= rate]
    return math.fsum(profile_at(settings, other).macs for other in rates) / len(rates)
