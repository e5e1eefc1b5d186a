"""Results of each level's model in mixes and alone, paired differences, and costs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from statistics import fmean

from heterofl_flwr.core import formatting
from heterofl_flwr.core.exchanged import ALL
from heterofl_flwr.core.levels import level_name, rate_of
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.report.summary import price_text
from heterofl_flwr.runs.costs import LevelCost
from heterofl_flwr.settings.method_name import method_name
from simulations.results.configurations import Configuration, identify, possible, shown
from simulations.results.runs import FREE, Run, able_to_hold, short_mix
from simulations.results.spent import Point
from simulations.results.statistics import FEWEST, Summary, show_difference, show_spread, summarise
from simulations.results.tables import NOTES, Table

EQUAL_PARTICIPATION, EQUAL_WORK = BASELINES = "equal participation", "equal work"
AGAINST = "HeteroFL"
ByLevel = Mapping[str, Mapping[int, float]]
"""Values by level, then by seed."""


@dataclass(frozen=True)
class Trained:
    """A configuration, and a result for each level's model: the mean of ``metric`` in the last ``last`` evaluations."""

    configuration: Configuration
    metric: str
    last: int = 1

    @property
    def runs(self) -> Sequence[Run]:
        return self.configuration.runs

    @property
    def mix(self) -> Mix:
        return self.runs[0].settings.mix

    @property
    def label(self) -> str:
        """Label of the configuration without its mix."""
        return self.configuration.label.replace(f" {short_mix(self.mix)}", "", 1)

    @cached_property
    def settings(self) -> Mapping[str, object]:
        """Settings for the comparison with other configurations in ``nearest``."""
        return dict(identify(self.runs[0], *FREE, "mix", "assignment", "sample.fraction"))

    @cached_property
    def work(self) -> float:
        """Mean number of clients that train in a round."""
        return fmean(len(record.rates) for record in self.runs[0].records)

    @cached_property
    def levels(self) -> ByLevel:
        """Results of levels' models by level, from the largest on, then by seed.

        Runs with fewer than ``last`` evaluations are left out.
        """
        found: dict[str, dict[int, float]] = {}
        for run in self.runs:
            evaluations = list(run.of_levels.values())
            for level in dict.fromkeys(chain(*evaluations)):
                values = [own[level][self.metric] for own in evaluations if self.metric in own.get(level, {})]
                if len(values) >= self.last:
                    found.setdefault(level, {})[run.seed] = shown(self.metric, fmean(values[-self.last :]))
        return dict(sorted(found.items(), key=lambda item: -rate_of(item[0])))

    @property
    def trainings(self) -> ByLevel:
        """Number of trainings of clients at each level in all rounds, by seed."""
        rates = {run.seed: list(chain(*(record.rates.values() for record in run.records))) for run in self.runs}
        return {level_name(rate): {seed: own.count(rate) for seed, own in rates.items()} for rate in self.mix.rates}

    @property
    def costs(self) -> Mapping[str, LevelCost]:
        """Cost of each level's model, if the runs have it."""
        return {cost.level: cost for run in self.runs for cost in (run.costs.levels if run.costs else ())}

    @property
    def price(self) -> str:
        """Price of the mix as text; '' if it is unknown, also if clients keep layers, which are not sent."""
        if self.runs[0].settings.server.shared != ALL:
            return ""
        run = next((run for run in self.runs if run.costs), self.runs[0])
        records = [record for run in self.runs for record in run.records]
        return price_text(run.settings.mix, records, run.costs, run.settings.train.distill)

    def able(self, rate: float = 0.0) -> float:
        """Return the number of participating clients that can hold a model of this rate."""
        return self.runs[0].clients * able_to_hold(self.mix, rate) / len(self.mix.parts)

    def baselines(self, single: "Trained") -> Iterator[str]:
        """Yield which of ``BASELINES`` the single-level configuration ``single`` is for this mix: one, both or none."""
        able = self.able(single.mix.rates[0])
        if math.isclose(single.able(), able):
            share = self.work * able / self.able()
            if 0.9 * share <= single.work < share + 1:  # a fraction of a client is rounded up
                yield EQUAL_PARTICIPATION
            if abs(single.work - self.work) < 1:
                yield EQUAL_WORK

    def nearest(self, others: Sequence["Trained"], level: str) -> "Trained | None":
        """Return the configuration in ``others`` with the fewest different settings; None if there is none.

        Only configurations with the same model, numbers of rounds and epochs, and with results for a common seed, are
        compared.
        """
        differences: dict[Trained, int] = {}
        for other in others:
            if self.levels[level].keys() & other.levels.get(level, {}).keys():
                keys = [key for key, value in self.settings.items() if value != other.settings.get(key)]
                if not any(key.startswith(("num-rounds", "train.epochs", "model.")) for key in keys):
                    differences[other] = len(keys)
        return min(differences, key=differences.__getitem__, default=None)

    def less(self, others: Mapping[str, "Trained"]) -> ByLevel:
        """Return, by level and seed, the results of this configuration minus those of ``others``.

        ``others`` has the configuration to compare with for each level.
        """
        return {level: _less(self.levels[level], other.levels[level]) for level, other in others.items()}


def _less(mine: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    return {seed: mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())}


Baselines = Mapping[str, Mapping[str, Trained]]
"""Single-level configurations, by name in ``BASELINES``, then by level."""

Row = tuple[str, ByLevel, Callable[[Sequence[float]], str], str]
"""Name, values, function that formats the values of a level as text, and price."""


def levels_table(configurations: Sequence[Configuration], metric: str, last: int = 1, against: str = AGAINST) -> Table:
    """Return the table of results of levels' models in mixes and alone, with paired differences.

    Differences are from the levels alone, and from the method ``against``.
    """
    groups: dict[tuple[object, ...], tuple[list[Trained], Baselines]] = {}
    for mixed, alone in _mixes(configurations, metric, last):
        singles = (tuple(own.items()) for own in alone.values())
        groups.setdefault((short_mix(mixed.mix), *singles), ([], alone))[0].append(mixed)
    rows = [(str(mix), *row) for (mix, *_), group in groups.items() for row in _rows(*group, against)]
    levels = sorted({level for _, _, values, *_ in rows for level in values}, key=rate_of, reverse=True)
    cells = []
    for mix, name, values, write, price in rows:
        seeds = [", ".join(map(str, values[level])) for level in levels if level in values]
        texts = (write(list(values[level].values())) if level in values else "" for level in levels)
        cells.append((mix, name, " / ".join(seeds if len(set(seeds)) > 1 else seeds[:1]), *texts, price))
    when = "after the last round" if last == 1 else f"as the mean of the last {last} evaluations"
    note = NOTES["Each level's own model"].format(metric=metric.replace("-", " "), when=when)
    return Table("tab:levels", "Each level's own model", ("mix", "", "seeds", *levels, "price"), tuple(cells), note)


def _mixes(configurations: Sequence[Configuration], metric: str, last: int) -> Iterator[tuple[Trained, Baselines]]:
    """Yield each mix with results of levels, and its baselines."""
    trained = [Trained(one, metric, last) for one in configurations]
    singles = [one for one in trained if len(one.mix.rates) == 1]
    for mixed in (one for one in trained if len(one.mix.rates) > 1 and one.levels):
        named = {name: [single for single in singles if name in mixed.baselines(single)] for name in BASELINES}
        yield mixed, {name: _nearest(mixed, others) for name, others in named.items()}


def _nearest(one: Trained, others: Sequence[Trained]) -> dict[str, Trained]:
    """Return, by level, the configuration in ``others`` to compare with."""
    return {level: other for level in one.levels if (other := one.nearest(others, level))}


def _rows(group: Sequence[Trained], alone: Baselines, against: str) -> Iterator[Row]:
    """Yield the rows of mixes with equal baselines."""
    write = lambda values: show_spread(summarise(values, possible(group[0].metric)))  # noqa: E731
    yield from ((one.label, one.levels, write, one.price) for one in group)
    most = sorted(alone, key=lambda name: -len(alone[name]))
    by_name = {
        name: singles
        for name, singles in alone.items()
        if not any(singles.items() <= alone[other].items() for other in most[: most.index(name)]) and singles
    }
    for name, singles in by_name.items():
        yield f"alone, {name}", {level: one.levels[level] for level, one in singles.items()}, write, ""
    if by_name:
        yield "trainings, in the mix", max(group, key=lambda one: len(one.runs)).trainings, _count, ""
    for name, singles in by_name.items():
        yield f"trainings, {name}", {level: one.trainings[level] for level, one in singles.items()}, _count, ""
    for one in group:
        for name, singles in by_name.items():
            yield f"{one.label}, less {name}", one.less(singles), _differences, ""
    references = [one for one in group if method_name(one.runs[0].settings) == against]
    for one in (one for one in group if one not in references):
        if nearest := _nearest(one, references):
            yield f"{one.label}, less {against}", one.less(nearest), _differences, ""


def _count(values: Sequence[float]) -> str:
    return f"{fmean(values):,.1f}".removesuffix(".0")


def _differences(values: Sequence[float]) -> str:
    return show_difference(summarise(values)) if len(values) >= FEWEST else ", ".join(f"{v:+.2f}" for v in values)


def costs_table(configurations: Sequence[Configuration]) -> Table:
    """Return the table of the costs of levels' models, each with the first configuration that has this cost."""
    labels: dict[LevelCost, str] = {}
    for one in configurations:
        for cost in Trained(one, "").costs.values():
            labels.setdefault(cost, one.label)
    costs = sorted(labels, key=lambda cost: (-cost.rate, -cost.parameters))
    rows = tuple(
        (cost.level, f"{cost.parameters:,}", formatting.count(cost.macs), formatting.size(cost.bytes), labels[cost])
        for cost in costs
    )
    header = ("level", "parameters", "multiplications", "bytes", "such as in")
    return Table("tab:costs", "Each level's model", header, rows, NOTES["Each level's model"])


def less_alone(
    configurations: Sequence[Configuration], metric: str, last: int, baseline: str
) -> Iterator[tuple[str, dict[str, Summary]]]:
    """Yield the label of each mix and, by level, its results minus those of the ``baseline`` with only this level."""
    for mixed, alone in _mixes(configurations, metric, last):
        differences = mixed.less(alone[baseline])
        yield mixed.label, {level: summarise(list(by_seed.values())) for level, by_seed in differences.items()}


def level_curve(configuration: Configuration, metric: str, last: int = 1) -> list[Point]:
    """Return the results of levels' models over the multiplications of a forward pass, from the smallest level."""
    trained = Trained(configuration, metric, last)
    costs = trained.costs
    return [
        Point(costs[level].macs, summarise(list(values.values()), possible(metric)))
        for level, values in reversed(list(trained.levels.items()))
        if level in costs
    ]
