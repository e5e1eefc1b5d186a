"""Configurations (groups of runs that differ only in the seed), their labels, and their results over seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, product

from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.client_metrics import is_share
from heterofl_flwr.runs.scores import SCOPES, headline_kind
from heterofl_flwr.settings.method_name import method_name
from heterofl_flwr.settings.validate import INCIDENTAL
from heterofl_flwr.settings.value_types import Flat
from simulations.results.paper import Job, Key, departures, job_of
from simulations.results.runs import FREE, OF_LEVEL, Run, Score, short_mix
from simulations.results.statistics import ANYTHING, PERCENT, PERPLEXITY, Interval, Summary, summarise

Identity = tuple[tuple[str, Flat], ...]
"""Settings that all runs of a configuration have in common."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """Finished runs that differ only in the seed."""

    label: str  # method and mix, and differences from other configurations of the same method
    runs: tuple[Run, ...]  # one run for each seed, sorted by seed
    job: Job | None = None  # job of the paper, if all runs have the published settings


Places = Mapping[tuple[str, str], Sequence[Configuration]]
"""Configurations by data and split."""


def configurations(runs: Iterable[Run]) -> dict[tuple[str, str], list[Configuration]]:
    """Return the configurations of finished runs, by data and split.

    Runs that differ only in settings of evaluation or of the engine are one configuration, unless two of them have the
    same seed. Of runs with equal settings and seed, only the latest is used.
    """
    places: dict[tuple[str, str], dict[Identity, list[Run]]] = {}
    for run in sorted((run for run in runs if run.finished), key=lambda run: run.started):
        place = places.setdefault(run.place, {})
        place.setdefault(identify(run, *FREE), []).append(run)
    found = {place: _labelled(dict(_by_seed(groups))) for place, groups in places.items()}
    return {place: sorted(own, key=lambda one: one.label) for place, own in sorted(found.items())}


def identify(run: Run, *left_out: str) -> Identity:
    """Return all settings that may change a result, without the seed and those with a prefix in ``left_out``."""
    skipped = (*INCIDENTAL, "seed", "data.name")  # a data set has several names
    flat = {key: value for key, value in run.flat.items() if key not in skipped}
    if len(run.settings.mix.rates) == 1 and not run.settings.mix.idle:
        flat |= {"assignment": "fix", "mix": short_mix(run.settings.mix)}  # all clients have the same level
    flat["clients"] = run.clients
    return tuple((key, value) for key, value in flat.items() if not key.startswith(left_out))


def _by_seed(groups: Mapping[Identity, Sequence[Run]]) -> Iterator[tuple[Identity, Mapping[int, Run]]]:
    """Yield groups of runs by seed, split by all settings if two runs of a group have the same seed.

    Of runs with equal settings and seed, only the latest is used.
    """
    for identity, runs in groups.items():
        exact: dict[Identity, dict[int, Run]] = {}
        for run in runs:
            exact.setdefault(identify(run), {})[run.seed] = run
        seeds = [seed for own in exact.values() for seed in own]
        if len(seeds) == len(set(seeds)):
            yield identity, {seed: run for own in exact.values() for seed, run in own.items()}
        else:
            yield from exact.items()


def _labelled(groups: Mapping[Identity, Mapping[int, Run]]) -> Iterator[Configuration]:
    """Yield a configuration for each group of runs; equal labels are extended by the settings that differ."""
    namesakes: dict[str, list[Identity]] = {}
    for identity, by_seed in groups.items():
        settings = next(iter(by_seed.values())).settings
        name = "+".join(settings.distill.models) or settings.model.name
        label = f"{method_name(settings)} {short_mix(settings.mix)}, {name}"
        namesakes.setdefault(label, []).append(identity)
    for label, identities in namesakes.items():
        values: dict[str, set[Flat]] = {}
        for key, value in chain(*identities):
            values.setdefault(key, set()).add(value)
        for identity in identities:
            more = "".join(f", {key}={value}" for key, value in identity if len(values[key]) > 1)
            runs = tuple(run for _, run in sorted(groups[identity].items()))
            job = None if any(map(departures, runs)) else job_of(runs[0].settings)
            yield Configuration(f"{label}{more}", runs, job)


@dataclass(frozen=True, slots=True)
class Reached:
    """Results of a configuration in one metric; accuracies are in percent."""

    configuration: Configuration
    metric: str
    runs: tuple[tuple[Run, Score], ...]  # by seed
    final: Summary  # after the last evaluation
    best: Summary  # in the round with the best global metric

    def values(self, when: str) -> dict[int, float]:
        """Return the ``final`` or ``best`` value of each seed."""
        return {run.seed: getattr(score, when) for run, score in self.runs}

    @property
    def evaluations(self) -> str:
        """Number of evaluations of a run, from which the best is chosen, as text."""
        numbers = {sum(self.metric in own for own in run.scores.values()) for run, _ in self.runs}
        return " / ".join(map(str, sorted(numbers)))


def reached(configurations: Sequence[Configuration]) -> list[Reached]:
    """Return the results of each configuration in each metric that it has."""
    pairs = product(metrics_of(configurations), configurations)
    return [own for metric, one in pairs if (own := _reach(one, metric))]


def reached_by_levels(configurations: Sequence[Configuration]) -> list[Reached]:
    """Return the results of each level's model on all clients' test data, in global accuracy."""
    pairs = [(one, level_name(rate)) for one in configurations for rate in one.runs[0].settings.mix.rates]
    return [own for one, level in pairs if (own := _reach(one, f"global-accuracy{OF_LEVEL}{level}"))]


@cache
def _reach(configuration: Configuration, metric: str) -> Reached | None:
    name = metric.partition(OF_LEVEL)[0]
    runs = tuple(
        (run, Score(shown(name, own.final), shown(name, own.best), own.best_round))
        for run in configuration.runs
        if (own := run.score(metric))
    )
    ends = ([getattr(score, end) for _, score in runs] for end in ("final", "best"))
    return (
        Reached(configuration, metric, runs, *(summarise(values, possible(name)) for values in ends)) if runs else None
    )


def published(places: Places) -> dict[Key, Reached]:
    """Return the results of the paper's jobs, including those of each level's model."""
    found = [one for own in places.values() for one in (*reached(own), *reached_by_levels(own))]
    found.sort(key=lambda one: max(run.started for run, _ in one.runs))  # the latest result of a job counts
    by_key = {(job, one.metric): one for one in found if (job := one.configuration.job)}
    return dict(sorted(by_key.items(), key=lambda item: (item[0][0].split, item[0][1], str(item[0][0]))))


def metrics_of(configurations: Sequence[Configuration]) -> list[str]:
    """Return the headline metrics that have values, of the scopes global, local and worst."""
    records = [record for one in configurations for run in one.runs for record in run.records]
    kind = headline_kind(records)
    return [f"{scope}-{kind}" for scope in SCOPES if any(f"{scope}-{kind}" in record.evaluate for record in records)]


def shown(metric: str, value: float) -> float:
    """Return a value for tables and figures, where accuracies are in percent."""
    return 100 * value if is_share(metric) else value


def possible(metric: str) -> Interval:
    """Return the range of values that a metric can have in tables and figures."""
    return PERCENT if is_share(metric) else PERPLEXITY if metric.endswith("perplexity") else ANYTHING
