"""Runs by configuration: which method one is, what tells it from others, and what its training computes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.grids.devices import PASSES
from heterofl_flwr.nn.nested import mean_passes
from heterofl_flwr.settings import Flat, Settings, to_flat
from heterofl_flwr.settings.presets import architectures, client_settings
from simulations.results.runs import FREE, Run, method_of, short_mix
from simulations.sweep.cost import profile_at, sizes_of, values_of
from simulations.sweep.job import INCIDENTAL

Identity = tuple[tuple[str, Flat], ...]
"""The settings that the runs of one configuration have in common."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The finished runs that differ in nothing but the seed."""

    label: str  # method and mix, and what else tells it from others of the same method
    runs: tuple[Run, ...]  # a run for each seed, in their order


def configurations(runs: Iterable[Run]) -> dict[tuple[str, str], list[Configuration]]:
    """Return finished runs by data and split, and there by what they have in common beside the seed.

    Runs that differ in how they were evaluated, or by which engine they were made, are of one configuration, unless one
    seed has several of them.
    """
    places: dict[tuple[str, str], dict[Identity, list[Run]]] = {}
    for run in sorted(filter(is_finished, runs), key=lambda run: run.started):
        place = places.setdefault(run.place, {})
        place.setdefault(_identify(run, *FREE), []).append(run)
    found = {place: _labelled(dict(_by_seed(groups))) for place, groups in places.items()}
    return {place: sorted(own, key=lambda one: one.label) for place, own in found.items()}


def is_finished(run: Run) -> bool:
    """Whether a run has done all its rounds, or has stopped before because nothing improved (``run.patience``)."""
    return bool(run.records) and (run.finished or bool(run.about.get("finished")))


def _identify(run: Run, *left_out: str) -> Identity:
    """Return all settings that may change a result, but for the seed and those that begin with what is left out."""
    skipped = (*INCIDENTAL, "seed", "data.name")  # data have several names
    flat = {key: value for key, value in to_flat(run.settings).items() if key not in skipped}
    flat["clients"] = run.clients
    return tuple((key, value) for key, value in flat.items() if not key.startswith(left_out))


def _by_seed(groups: Mapping[Identity, Sequence[Run]]) -> Iterable[tuple[Identity, Mapping[int, Run]]]:
    """Yield runs by seed; a later one takes the place of an earlier one with equal settings."""
    for identity, runs in groups.items():
        exact: dict[Identity, dict[int, Run]] = {}
        for run in runs:
            exact.setdefault(_identify(run), {})[run.seed] = run
        seeds = [seed for own in exact.values() for seed in own]
        if len(seeds) == len(set(seeds)):
            yield identity, {seed: run for own in exact.values() for seed, run in own.items()}
        else:
            yield from exact.items()


def _labelled(groups: Mapping[Identity, Mapping[int, Run]]) -> Iterable[Configuration]:
    """Yield groups of runs under different labels: groups of one method and mix also name where they differ."""
    namesakes: dict[str, list[Identity]] = {}
    for identity, by_seed in groups.items():
        settings = next(iter(by_seed.values())).settings
        name = "+".join(architectures(settings)) or settings.model.name
        label = f"{method_of(settings)} {short_mix(settings.mix)}, {name}"
        namesakes.setdefault(label, []).append(identity)
    for label, identities in namesakes.items():
        values: dict[str, set[Flat]] = {}
        for key, value in chain(*identities):
            values.setdefault(key, set()).add(value)
        for identity in identities:
            more = "".join(f", {key}={value}" for key, value in identity if len(values[key]) > 1)
            yield Configuration(f"{label}{more}", tuple(run for _, run in sorted(groups[identity].items())))


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
    clients = (_of_client(client_settings(run.settings, who), rate, examples) for who, rate in record.rates.items())
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
