"""Which method a run is, what tells apart the runs of one method, and what its training computes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress

from heterofl_flwr.core.plan import ALL
from heterofl_flwr.grids.devices import PASSES
from heterofl_flwr.settings import Flat, Settings, to_flat
from heterofl_flwr.settings.presets import EXCHANGES, architectures, client_settings
from simulations.paper.printed import FREE, short_mix
from simulations.paper.runs import Run
from simulations.sweep.cost import facts_of, profile_at

SLICE_METHODS = {
    "prefix": "HeteroFL",
    "rolling": "FedRolex",
    "random-level": "random slices by level",
    "random-client": "Federated Dropout",
}
EXCHANGE_METHODS = {"fedh2l": "FedH2L", "hybrid": "HeteroFL and FedH2L"}

Identity = tuple[tuple[str, Flat], ...]
"""The settings that runs of one contestant have in common."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """The finished runs of one method with one choice of settings, over seeds."""

    label: str  # method and mix, and what else tells it from others of the same method
    runs: tuple[Run, ...]  # a run for each seed, in their order


def method_of(settings: Settings) -> str:
    """Return the name of a method."""
    server = settings.server
    if server.strategy in EXCHANGE_METHODS:
        return EXCHANGE_METHODS[server.strategy]
    if server.shared != ALL:
        return "LG-FedAvg" if server.shared else "Standalone"
    if settings.train.ordered_dropout:
        return "FjORD"
    if server.weights == "examples" and len(settings.mix.rates) == 1:
        return "FedAvg"
    return SLICE_METHODS[server.choose]


def contestants(runs: Iterable[Run]) -> dict[tuple[str, str], list[Contestant]]:
    """Return finished runs by data and split, and there by what they have in common beside the seed."""
    found: dict[tuple[str, str], dict[Identity, dict[int, Run]]] = {}
    for run in sorted(runs, key=lambda run: run.started):
        if run.finished:
            identity = tuple((key, value) for key, value in to_flat(run.settings).items() if not key.startswith(FREE))
            place = found.setdefault((run.job.data, run.job.split), {})
            place.setdefault(identity, {})[run.seed] = run  # a later run of a seed takes the place of an earlier one
    return {place: sorted(_labelled(groups), key=lambda one: one.label) for place, groups in found.items()}


def _labelled(groups: Mapping[Identity, Mapping[int, Run]]) -> Iterable[Contestant]:
    """Yield groups of runs under different labels: groups of one method and mix also name where they differ."""
    namesakes: dict[str, list[Identity]] = {}
    for identity, by_seed in groups.items():
        settings = next(iter(by_seed.values())).settings
        name = "+".join(architectures(settings)) or settings.model.name
        label = f"{method_of(settings)} {short_mix(settings.mix)}, {name}"
        namesakes.setdefault(label, []).append(identity)
    for label, identities in namesakes.items():
        differs = [len(set(column)) > 1 for column in zip(*identities, strict=True)]
        for identity in identities:
            more = "".join(f", {key}={value}" for key, value in compress(identity, differs))
            yield Contestant(f"{label}{more}", tuple(run for _, run in sorted(groups[identity].items())))


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
    """Return what one client computes in a round; with ordered dropout, the mean over the models of a batch."""
    rates: Sequence[float] = [rate]
    if settings.train.ordered_dropout:
        rates = [other for other in settings.mix.rates if other <= rate]
    one = math.fsum(profile_at(settings, other).macs for other in rates) / len(rates)
    trained = settings.train.epochs * examples
    if settings.server.strategy not in EXCHANGES:
        return PASSES * one * trained
    # It also says what it makes of the seed batch, and learns from it beside its own data.
    distill = settings.distill
    own = min(settings.train.batch_size, examples)
    return one * (PASSES * (trained + distill.steps * (own + distill.seed_batch)) + distill.seed_batch)
