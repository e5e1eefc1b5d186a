"""What configurations reached and spent: over seeds as tables, and run by run as values."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import Mix, level_name, rate_of
from heterofl_flwr.runs.costs import LevelCost
from simulations.results.configurations import (
    Configuration,
    Places,
    Reached,
    identify,
    metrics_of,
    possible,
    reached,
    shown,
)
from simulations.results.formats import Table, show_interval, show_summary, to_csv
from simulations.results.paper import AGREES, DIFFERS, TOO_FEW, Cell, Key, Printed, departures
from simulations.results.runs import ACCURACY, FREE, Run, portable
from simulations.results.spent import AXES, axes_of, spent_until
from simulations.results.statistics import Interval, Summary, summarise

LEVELS_NOTE = (
    "Multiplications are those of a forward pass of one example; bytes those of the parameters in a message, one way. "
    "After the last round: mean ± standard deviation over the seeds that evaluated it, and the interval as above."
)
EVERY_CLIENT, EQUAL_PARTICIPATION, EQUAL_WORK = "every client", "equal participation", "equal work"
OTHER_CLIENTS, NEITHER = "more clients than hold it", "neither equal participation nor equal work"
ALONE_NOTE = (
    "Global accuracy after the last round, in points, paired by seed: above 0 the level gains by taking part. Equal "
    "participation: the clients that can hold the level train it, each as often as in the mix. Equal work: they train "
    "it, as many a round as train in the mix. Every client: those that could not hold it train it too. Trainings: the "
    "number of times that a client trained the level, in the mix and alone, in all rounds. Of several runs of one "
    "baseline those count that share most settings with the mix."
)
TOLERANCE = 0.15
"""Relative difference up to which two participations, or two numbers of clients a round, are equal."""


def reached_table(configurations: Sequence[Configuration], printed: Printed) -> Table:
    """Return what each configuration reached, over seeds, and the paper's numbers where it prints some of them."""
    rows: list[tuple[str, ...]] = []
    beside = []
    for own in reached(configurations):
        seeds, rounds = (", ".join(map(str, dict.fromkeys(texts))) for texts in zip(
            *((run.seed, run.rounds) for run, _ in own.runs), strict=True
        ))  # fmt: skip
        ends = show_summary(own.final), show_summary(own.best)
        rows.append((own.configuration.label, own.metric.replace("-", " "), seeds, rounds, *ends))
        beside.append((own.evaluations, *_beside(own, _cells(own, printed))))
    header: tuple[str, ...] = ("configuration", "metric", "seeds", "rounds", "final", "best")
    if any(row[2] for row in beside):
        header += ("best of", "one run, 95 %", "paper", "difference", "verdict")
        rows = [(*row, *more) for row, more in zip(rows, beside, strict=True)]
    return Table("tab:reached", "Reached", header, tuple(rows))


def _cells(own: Reached, printed: Printed) -> Sequence[Cell]:
    job = own.configuration.job
    return printed.get((job, own.metric), ()) if job else ()


def _beside(own: Reached, cells: Sequence[Cell]) -> tuple[str, str, str, str]:
    """Return the interval of one more run, the printed numbers, our best less theirs, and the verdicts."""
    interval = show_interval(own.best.prediction) if cells else ""
    numbers = ", ".join(f"{cell.printed} (Table {cell.table})" for cell in cells)
    less = ", ".join(f"{own.best.mean - cell.value:+.2f}" for cell in cells)
    return interval, numbers, less, ", ".join(dict.fromkeys(cell.verdict(own.best) for cell in cells))


@dataclass(frozen=True, slots=True)
class LevelReached:
    """What a level's own model reached by some metrics after the last round, over seeds. Shares are in percent."""

    label: str  # of the configuration
    level: str
    cost: LevelCost | None
    metrics: Mapping[str, Summary]
    seeds: tuple[int, ...]  # of the runs that evaluated it


def reached_by_level(configurations: Sequence[Configuration]) -> list[LevelReached]:
    """Return what each level's own model reached, where it was evaluated."""
    metrics, found = metrics_of(configurations), []
    for one in configurations:
        last = {run.seed: run.records[-1].evaluate_by_level for run in one.runs}
        known = (cost for run in reversed(one.runs) for cost in (run.costs.levels if run.costs else ()))
        costs = {cost.level: cost for cost in known}  # of the first run that has them
        for level in sorted({level for by_level in last.values() for level in by_level}, key=rate_of, reverse=True):
            by_seed = {seed: by_level.get(level, {}) for seed, by_level in last.items()}
            values = {m: [shown(m, own[m]) for own in by_seed.values() if m in own] for m in metrics}
            if summaries := {metric: summarise(own, possible(metric)) for metric, own in values.items() if own}:
                seeds = tuple(seed for seed, own in by_seed.items() if own.keys() & summaries.keys())
                found.append(LevelReached(one.label, level, costs.get(level), summaries, seeds))
    return found


def levels_table(found: Sequence[LevelReached], metrics: Sequence[str]) -> Table:
    """Return what each level's own model costs and reached by some metrics; without rows where none was evaluated."""
    metrics, rows = [metric for metric in metrics if any(metric in own.metrics for own in found)], []
    for own in found:
        costs = (formatting.NOTHING,) * 3
        if cost := own.cost:
            costs = (f"{cost.parameters:,}", formatting.count(cost.macs), formatting.size(cost.bytes))
        values = (show_summary(own.metrics[m]) if m in own.metrics else formatting.NOTHING for m in metrics)
        rows.append((own.label, own.level, ", ".join(map(str, own.seeds)), *costs, *values))
    header = ("configuration", "level", "seeds", "parameters", "multiplications", "bytes")
    names = (metric.replace("-", " ") for metric in metrics)
    return Table("tab:levels", "Each level's own model", (*header, *names), tuple(rows), LEVELS_NOTE)


def alone_table(configurations: Sequence[Configuration]) -> Table:
    """Return the difference of each level's own model from that level alone, by baseline."""
    mixes = [_Trained.of(one) for one in configurations if len(one.runs[0].settings.mix.rates) > 1]
    singles: dict[str, list[_Trained]] = {}
    for one in configurations:
        if len(one.runs[0].settings.mix.rates) == 1:
            trained = _Trained.of(one)
            singles.setdefault(level_name(trained.mix.rates[0]), []).append(trained)
    rows = []
    for mixed in mixes:
        for level in map(level_name, mixed.mix.rates):
            nearest: dict[str, list[tuple[int, _Trained]]] = {}
            for single in singles.get(level, ()):
                if mixed.accuracies(level).keys() & single.accuracies(level).keys():
                    baseline = mixed.baseline(single)
                    nearest.setdefault(baseline, []).append((mixed.differences(single), single))
            for baseline, pairs in nearest.items():
                least = min(differences for differences, _ in pairs)
                for single in (single for differences, single in pairs if differences == least):
                    rows.append(_alone_row(mixed, single, level, baseline))
    header = ("configuration", "level", "baseline", "alone", "trainings in the mix", "alone", "seeds", "difference")
    return Table("tab:alone", "Each level's own model beside that level alone", header, tuple(rows), ALONE_NOTE)


def _alone_row(mixed: "_Trained", single: "_Trained", level: str, baseline: str) -> tuple[str, ...]:
    inside, alone = mixed.accuracies(level), single.accuracies(level)
    seeds = sorted(inside.keys() & alone.keys())
    difference = summarise([inside[seed] - alone[seed] for seed in seeds])
    trainings = (f"{trained.trainings(level):,.0f}" for trained in (mixed, single))
    labels = mixed.configuration.label, level, baseline, single.configuration.label
    return *labels, *trainings, ", ".join(map(str, seeds)), show_summary(difference)


@dataclass(frozen=True, slots=True)
class _Trained:
    """A configuration, its settings, and how many of its clients train in a round."""

    configuration: Configuration
    mix: Mix
    settings: Mapping[str, object]
    clients: float  # that take part, in all
    work: float  # clients a round, on average

    @classmethod
    def of(cls, configuration: Configuration) -> "_Trained":
        """Read a configuration's runs once."""
        run = configuration.runs[0]
        mix = run.settings.mix
        settings = dict(identify(run, *FREE, "mix", "assignment", "sample.fraction"))
        share = sum(mix.counts) / (sum(mix.counts) + mix.idle)
        work = sum(len(record.rates) for record in run.records) / len(run.records)
        return cls(configuration, mix, settings, run.clients * share, work)

    def baseline(self, single: "_Trained") -> str:
        """Return the name of a level alone as a baseline of this mix."""
        rate = single.mix.rates[0]
        counts = zip(self.mix.counts, self.mix.rates, strict=True)
        able = self.clients * sum(count for count, own in counts if own >= rate) / sum(self.mix.counts)
        if single.clients > able * (1 + TOLERANCE):
            return OTHER_CLIENTS if single.mix.idle else EVERY_CLIENT
        participation = single.work / single.clients, self.work / self.clients
        names = [EQUAL_PARTICIPATION] if math.isclose(*participation, rel_tol=TOLERANCE) else []
        names += [EQUAL_WORK] if math.isclose(single.work, self.work, rel_tol=TOLERANCE) else []
        return ", ".join(names) or NEITHER

    def differences(self, single: "_Trained") -> int:
        """Return the number of settings that differ."""
        return sum(value != single.settings.get(key) for key, value in self.settings.items())

    def trainings(self, level: str) -> float:
        """Return how often a client trained a level, in all rounds, as the mean over seeds."""
        counts = (
            sum(level_name(rate) == level for record in run.records for rate in record.rates.values())
            for run in self.configuration.runs
        )
        return sum(counts) / len(self.configuration.runs)

    def accuracies(self, level: str) -> dict[int, float]:
        """Return the accuracy of a level's own model after the last round by seed, in percent."""
        results = {run.seed: run.records[-1].evaluate_by_level.get(level, {}) for run in self.configuration.runs}
        return {seed: shown(ACCURACY, values[ACCURACY]) for seed, values in results.items() if ACCURACY in values}


def spent_table(configurations: Sequence[Configuration]) -> Table:
    """Return what each configuration spent, in the mean over seeds."""
    axes, rows = axes_of(configurations), []
    for one in configurations:
        asked = sum(len(record.rates) for run in one.runs for record in run.records)
        sent = sum(AXES["bytes"].spent(run)[-1] for run in one.runs) / asked
        totals = (_mean(axis, [AXES[axis].spent(run)[-1] for run in one.runs]) for axis in axes)
        rows.append((one.label, formatting.size(sent), *totals))
    header = ("configuration", "bytes a client and round", *axes)
    return Table("tab:spent", "Spent", header, tuple(rows))


def target_table(configurations: Sequence[Configuration], metric: str, target: float) -> Table:
    """Return what each configuration had spent when it first reached a target: the mean over the seeds that did."""
    axes, rows = axes_of(configurations), []
    for one in configurations:
        spent = {axis: [spent_until(run, metric, target, axis) for run in one.runs] for axis in axes}
        found = {axis: [value for value in values if value is not None] for axis, values in spent.items()}
        cells = (_mean(axis, values) for axis, values in found.items())
        rows.append((one.label, f"{len(found['rounds'])} of {len(one.runs)}", *cells))
    title = f"Until {metric.replace('-', ' ')} of {formatting.score(metric, target)}"
    note = "At the first evaluation that reached it; the mean over the seeds that did."
    return Table(f"tab:{metric}-{target:g}", title, ("configuration", "seeds that did", *axes), tuple(rows), note)


def _mean(axis: str, values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return AXES[axis].write(summarise(known).mean) if known else formatting.NOTHING


WIDE = 10.0
"""Points; a prediction interval wider than this tells little."""


def count_verdicts(cells: Sequence[Cell], found: Mapping[Key, Reached]) -> list[str]:
    """Return how many printed results there are, have a run, and agree with it: in all, and by group.

    A result is a job and a metric; one that two tables print counts once.
    """
    lines = []
    for group in ("", *dict.fromkeys(cell.group for cell in cells)):
        by_key: dict[Key, list[Cell]] = {}
        for cell in cells:
            if group in ("", cell.group):
                by_key.setdefault((cell.job, cell.metric), []).append(cell)
        run = {key: found[key].best for key in by_key if key in found}
        verdicts = {key: {cell.verdict(best) for cell in by_key[key]} for key, best in run.items()}
        numbers = Counter(
            next(verdict for verdict in (TOO_FEW, DIFFERS, AGREES) if verdict in own) for own in verdicts.values()
        )
        wide = sum(best.prediction is not None and _width(best.prediction) > WIDE for best in run.values())
        note = f" ({wide} by an interval wider than {WIDE:g} points)" if wide else ""
        lines.append(
            f"{group and f'{group}: '}{len(run)} of {len(by_key)} printed results have a run: {numbers[AGREES]} "
            f"agree{note}, {numbers[DIFFERS]} differ, {numbers[TOO_FEW]} have too few seeds to tell"
        )
    return lines


def _width(interval: Interval) -> float:
    return interval[1] - interval[0]


JOB = ("dataset", "split", "configuration", "metric")
ORIGIN = ("parameters", "seconds", "failures", "commit", "machine", "folder", "command", "note")
RUNS = (*JOB, "seed", "rounds", "final", "best", "best-round", "paper", "table", *ORIGIN)


def runs_csv(places: Places, printed: Printed) -> str:
    """Return a row for each run and metric; ``note`` says in what a run is not as the paper's job.

    Here and in the other values, what too few clients gave is left out.
    """
    rows = []
    for place, configurations in places.items():
        for own in reached(configurations):
            cells = _cells(own, printed)
            numbers = " ".join(cell.printed for cell in cells), " ".join(cell.table for cell in cells)
            for run, (final, best, best_round) in own.runs:
                scores = (round(final, 4), round(best, 4), best_round)
                values = (*place, own.configuration.label, own.metric, run.seed, run.rounds, *scores, *numbers)
                rows.append(dict(zip(RUNS, (*values, *_origin(run)), strict=True)))
    return to_csv(RUNS, rows)


def _origin(run: Run) -> tuple[object, ...]:
    parameters = "" if run.parameters is None else round(run.parameters, 1)
    note = "; ".join(departures(run))
    origin = run.commit, run.machine, portable(str(run.path)), portable(run.command)
    return parameters, round(run.seconds, 1), run.failures, *origin, note and f"not as published: {portable(note)}"


def curves_csv(places: Places) -> str:
    """Return a row for each run and evaluation, with what was spent by then."""
    metrics = tuple(dict.fromkeys(metric for own in places.values() for metric in metrics_of(own)))
    rows = (
        dict(zip(JOB[:3], (*place, one.label), strict=True)) | {"seed": run.seed} | values
        for place, own in places.items()
        for one in own
        for run in one.runs
        for values in _evaluations(run, metrics)
    )
    return to_csv((*JOB[:3], "seed", *AXES, *metrics), list(rows))


def _evaluations(run: Run, metrics: Sequence[str]) -> Iterator[dict[str, object]]:
    spent = zip(*(axis.spent(run) for axis in AXES.values()), strict=True)
    for values, so_far in zip(run.scores.values(), spent, strict=True):
        found = {metric: values[metric] for metric in metrics if metric in values}
        if found:
            yield {name: f"{value:.10g}" for name, value in (*zip(AXES, so_far, strict=True), *found.items())}
